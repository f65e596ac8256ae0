#include "model/shard_rules.h"

#include <algorithm>

#include "core/errors.h"

namespace maniple {
namespace {

void check_divides(const char* axis, int64_t degree, const char* size_name, int64_t size) {
  if (size % degree)
    throw ConfigError(fmt::format("parallel.{}={} must divide {}={}; choose another {}", axis,
                                  degree, size_name, size, axis));
}

}  // namespace

void check_mesh(const ModelConfig& model, const MeshShape& mesh) {
  const bool any_moe = std::any_of(model.layers.begin(), model.layers.end(),
                                   [](const LayerConfig& l) { return l.moe; });
  const bool any_dense = std::any_of(model.layers.begin(), model.layers.end(),
                                     [](const LayerConfig& l) { return !l.moe; });
  check_divides("tp", mesh.tp, "num_attention_heads", model.num_heads);
  check_divides("tp", mesh.tp, "num_key_value_heads", model.num_kv_heads);
  if (any_dense) check_divides("tp", mesh.tp, "intermediate_size", model.intermediate_size);
  if (!any_moe) {
    check_divides("ep", mesh.ep, "the number of experts", 1);
    check_divides("etp", mesh.etp, "the width of experts", 1);
    return;
  }
  check_divides("tp", mesh.tp, "shared_expert_intermediate_size", model.shared_expert_size);
  check_divides("ep", mesh.ep, "num_experts", model.num_experts);
  check_divides("etp", mesh.etp, "moe_intermediate_size", model.expert_size);
}

}  // namespace maniple

#include "moe/experts.h"

#include "core/errors.h"
#include "model/feed_forward.h"

namespace maniple {
Experts::Experts(const ModelConfig& model, const std::string& prefix, ParameterStore& store)
    : activation_(model.activation) {
  const ProcessMesh& mesh = store.mesh();
  const MeshShape& shape = mesh.shape();
  MANIPLE_INVARIANT(model.num_experts % shape.ep == 0 && model.expert_size % shape.etp == 0,
                    "ep {}, etp {}", shape.ep, shape.etp);
  num_local_ = model.num_experts / shape.ep;
  const Init normal{Init::kNormal, model.initializer_range};
  const Shard experts{0, mesh.ep_index(), shape.ep};
  const int64_t E = model.num_experts, D = model.hidden_size, F = model.expert_size;
  gate_up_ = &store.add(prefix + "experts.gate_up_proj", {E, 2, F, D}, GradGroup::kExpert,
                        {experts, {2, mesh.etp_index(), shape.etp}}, normal);
  down_ = &store.add(prefix + "experts.down_proj", {E, D, F}, GradGroup::kExpert,
                     {experts, {2, mesh.etp_index(), shape.etp}}, normal);
}

at::Tensor Experts::forward(const at::Tensor& x_ND, const at::Tensor& weight_N,
                            const std::vector<int64_t>& counts, std::function<at::Tensor()> again) {
  if (networks_.empty())
    for (int64_t e = 0; e < num_local_; ++e) {
      const int64_t D = down_->shape[1], F = down_->shape[2];
      networks_.push_back({gate_up_->value[e].view({2 * F, D}),
                           {gate_up_->grad[e].view({2 * F, D})},
                           down_->value[e],
                           down_->grad[e]});
    }
  return gated_feed_forward(x_ND, weight_N, counts, networks_, activation_, std::move(again));
}

}  // namespace maniple

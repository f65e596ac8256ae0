#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "core/config_schema.h"
#include "core/errors.h"
#include "core/files.h"
#include "interop/hf_names.h"
#include "interop/hub_model.h"
#include "trainer/export.h"
#include "trainer/run_state.h"

namespace maniple {
namespace {

constexpr int64_t kPartElements = int64_t{1}
                                  << 26;  // of masters in one file, at least one parameter

// The parameters that share a part file, in order.
std::vector<std::vector<NamedShape>> parts_of(const ModelConfig& model) {
  std::vector<std::vector<NamedShape>> parts(1);
  int64_t filled = 0;
  for (NamedShape& parameter : model_parameters(model)) {
    int64_t n = 1;
    for (const int64_t extent : parameter.shape) n *= extent;
    if (filled > 0 && filled + n > kPartElements) {
      parts.emplace_back();
      filled = 0;
    }
    filled += n;
    parts.back().push_back(std::move(parameter));
  }
  return parts;
}

}  // namespace

std::string import_model(const std::string& from, const std::string& run_dir) {
  const HubModel hub = open_hub_model(from);
  const ModelConfig model = parse_model_config(hub.config);
  if (const auto unread = unread_tensors(*hub.tensors, model); !unread.empty())
    throw DataError(
        fmt::format("importing {}: the model of its config.json has no tensor {} ({} such); "
                    "weights and config do "
                    "not belong together",
                    from, unread.front(), unread.size()));
  if (std::filesystem::exists(run_dir + "/checkpoints"))
    throw IoError(fmt::format("importing {}: the run folder {} has checkpoints; name a new one",
                              from, run_dir));
  const RunLock lock(run_dir);

  Config config;
  config.run.dir = run_dir;
  config.model.hf_config = run_dir + "/hub/config.json";
  const bool wide = hub.tensors->entry("model.embed_tokens.weight").dtype == at::kDouble;
  config.train.precision = wide ? "fp64" : "fp32";
  if (std::filesystem::is_directory(from)) {
    keep_hub_files(from, run_dir + "/hub");
  } else {
    ensure_directory(run_dir + "/hub");
    write_file_atomic(run_dir + "/hub/config.json", hub.config.dump(2) + "\n");
  }

  const at::ScalarType type = wide ? at::kDouble : at::kFloat;
  const ElementType stored = wide ? ElementType::kF64 : ElementType::kF32;
  const auto parts = parts_of(model);
  const nlohmann::json meta = {
      {"config", config_to_yaml(config)}, {"step", 0}, {"imported_from", from}};
  // Writer 0 waits for the others and completes the checkpoint: it comes last.
  for (size_t i = parts.size(); i-- > 0;) {
    std::vector<at::Tensor> values;
    std::vector<TensorSlice> slices;
    const auto add = [&](const std::string& name, ElementType element, const at::Tensor& value) {
      const std::vector<int64_t> shape = value.sizes().vec(), origin(shape.size(), 0);
      values.push_back(value);
      slices.push_back(
          {name, element, shape, origin, shape, 0, value.numel(), values.back().data_ptr()});
    };
    for (const NamedShape& parameter : parts[i])
      add("master/" + parameter.name, stored,
          load_parameter(*hub.tensors, model, parameter.name).to(type).contiguous());
    if (i == 0)
      for (int64_t layer = 0; layer < model.num_layers(); ++layer) {
        if (!model.layers[layer].moe) continue;
        const std::string name = fmt::format("model.layers.{}.mlp", layer);
        const auto zeros = [&](at::ScalarType t) {
          return at::zeros({model.num_experts}, at::TensorOptions(t));
        };
        add("router_bias/" + name, ElementType::kF32, zeros(at::kFloat));
        add("previous_load/" + name, stored, zeros(type));
      }
    write_checkpoint(run_dir + "/checkpoints", 0, static_cast<int>(i),
                     static_cast<int>(parts.size()), "import", slices, meta, config.checkpoint);
  }
  return fmt::format("{}: {} as step 0, {} parameters\n", run_dir, model.model_type,
                     num_parameters(model));
}

}  // namespace maniple

#include "trainer/run_state.h"

#include <ATen/Dispatch.h>

#include <bit>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"
#include "interop/hf_names.h"
#include "interop/hub_model.h"
#include "parallel/tensor_hash.h"
#include "interop/json_file.h"
#include "trainer/model_source.h"

namespace maniple {

std::vector<TensorSlice> state_slices(TrainedModel& model, ShardedAdamw::Blocks blocks,
                                      bool with_router, bool with_moments) {
  std::vector<TensorSlice> slices = model.optimizer->state_slices(blocks, with_moments);
  if (!with_router) return slices;
  for (MoeLayer* layer : model.moe_layers) {
    Router& r = layer->router();
    const int64_t E = r.bias.numel();
    const std::string suffix = "model.layers." + std::to_string(r.layer()) + ".mlp";
    slices.push_back({"router_bias/" + suffix, ElementType::kF32, {E}, {0}, {E}, 0, E,
                      r.bias.data_ptr()});
    const auto type = r.previous_f.scalar_type() == at::kDouble ? ElementType::kF64 : ElementType::kF32;
    slices.push_back({"previous_load/" + suffix, type, {E}, {0}, {E}, 0, E, r.previous_f.data_ptr()});
  }
  return slices;
}

at::Tensor bytes_of(const TensorSlice& slice, const at::Device& device) {
  return at::from_blob(slice.data, {(slice.end - slice.begin) * element_bytes(slice.type)},
                       at::TensorOptions(at::kByte).device(device));
}

void set_random_weights(TrainedModel& model, uint64_t seed) {
  model.optimizer->initialize([&](const Parameter& p, int64_t first, int64_t n, double* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = initial_value(p, seed, p.global_index(first + i));
  });
}

void load_hub_weights(TrainedModel& model, const HubTensors& weights) {
  std::string name;
  at::Tensor whole;
  model.optimizer->initialize([&](const Parameter& p, int64_t first, int64_t n, double* out) {
    if (p.name != name) {
      whole.reset();
      whole = load_parameter(weights, model.model, p.name).contiguous();
      name = p.name;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, whole.scalar_type(), "load", [&] {
      const auto* from = whole.const_data_ptr<scalar_t>();
      for (int64_t i = 0; i < n; ++i) {
        const int64_t g = p.global_index(first + i);
        out[i] = g < 0 ? 0 : static_cast<double>(from[g]);
      }
    });
  });
}

void set_initial_weights(TrainedModel& model, const Config& config) {
  const std::string& from = config.model.init_from;
  if (from.empty())
    set_random_weights(model, config.run.seed);
  else if (is_hub_model(from))
    load_hub_weights(model, *open_hub_model(from).tensors);
  else
    load_checkpoint(model, open_checkpoint(from), false);
}

Fingerprint fingerprint_of_state(TrainedModel& model, bool with_router) {
  Fingerprint f = model.optimizer->fingerprint();
  if (!with_router) return f;
  for (MoeLayer* layer : model.moe_layers) {
    const uint64_t key = hash_name("router_bias") + static_cast<uint64_t>(layer->router().layer());
    const at::Tensor bias = layer->router().bias.cpu();
    for (int64_t e = 0; e < bias.numel(); ++e)
      f.add_word(std::bit_cast<uint32_t>(bias.const_data_ptr<float>()[e]),
                 static_cast<uint64_t>(e), key);
  }
  return f;
}

void load_checkpoint(TrainedModel& model, const CheckpointInfo& checkpoint, bool with_moments) {
  std::vector<TensorSlice> slices =
      state_slices(model, ShardedAdamw::Blocks::kHeld, true, with_moments);
  const at::Device& device = model.store.mesh().device();
  if (device.is_cpu()) {
    load_slices(checkpoint, slices);
  } else {
    std::vector<TensorSlice> host = slices;
    std::vector<at::Tensor> bytes;
    for (TensorSlice& s : host) {
      bytes.push_back(at::empty_like(bytes_of(s, device), at::TensorOptions(at::kCPU)));
      s.data = bytes.back().data_ptr();
    }
    load_slices(checkpoint, host);
    for (size_t i = 0; i < slices.size(); ++i) bytes_of(slices[i], device).copy_(bytes[i]);
  }
  model.optimizer->refresh_values();
}

void keep_imported_files(const Config& config, const std::string& init_from) {
  namespace fs = std::filesystem;
  const std::string to = config.run.dir + "/hub";
  const std::string& named = config.model.hf_config;
  const std::string text = named.empty() ? "" : read_file(named, "model.hf_config");
  std::error_code ignored;
  std::string from = init_from;
  if (!from.empty() && !is_hub_model(from)) from = hub_folder_of(reopen_checkpoint(from));
  if (!from.empty() && fs::is_directory(from)) {
    if (fs::exists(to) && fs::equivalent(from, to, ignored)) return;
    fs::remove_all(to, ignored);
    keep_hub_files(from, to);
  } else {
    fs::remove_all(to, ignored);
  }
  if (named.empty()) return;
  ensure_directory(to);
  write_file_atomic(to + "/config.json", text);
}

ModelConfig resolve_model(const ModelSection& section) {
  nlohmann::json config;
  if (!section.hf_config.empty()) {
    try {
      config = read_json_object(section.hf_config, "model.hf_config");
    } catch (const DataError& e) {
      throw ConfigError(fmt::format("cannot read model.hf_config: {}; name a config.json", e.what()));
    }
  } else {
    config = preset_config(section.preset.empty() ? "house" : section.preset);
  }
  for (const auto& [key, value] : section.overrides.items()) config[key] = value;
  return parse_model_config(config);
}

std::string job_fingerprint(TrainedModel& model, ProcessMesh& mesh) {
  const at::Tensor mine = words_of(fingerprint_of_state(model, mesh.world().rank() == 0));
  at::Tensor all = at::empty({mesh.world().size(), 2}, mine.options());
  mesh.world().all_gather(mine, all);
  return combined(all).hex();
}

}  // namespace maniple

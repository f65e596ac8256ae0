// config.json of a Hugging Face folder, of every family and in both generations of field names. What
// is accepted must be described to the end: its size, its parameters, its GGUF metadata.
#include "core/errors.h"
#include "core/files.h"
#include "fuzz.h"
#include "interop/compressed_tensors.h"
#include "interop/gguf_model.h"
#include "interop/hf_names.h"
#include "interop/hub_model.h"
#include "model/model_config.h"
#include "scratch_file.h"

namespace maniple {
namespace {

nlohmann::json packed_config() {
  nlohmann::json config = preset_config("qwen3_moe");
  config["quantization_config"] =
      quantization_config(make_grid("int4_g32", at::kFloat), {"lm_head"});
  return config;
}

nlohmann::json new_generation() {  // transformers 5
  nlohmann::json config = preset_config("gemma3_text");
  config.erase("rope_theta");
  config.erase("rope_local_base_freq");
  config["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  config["layer_types"] = {"sliding_attention", "sliding_attention", "full_attention",
                           "sliding_attention", "sliding_attention", "full_attention"};
  return config;
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds = {packed_config().dump(2), new_generation().dump()};
  for (const char* preset : {"house", "qwen3_moe", "qwen2_moe", "mixtral", "gemma3_text"})
    seeds.push_back(preset_config(preset).dump(2));
  return seeds;
}

std::vector<std::string> fuzz_dictionary() {
  return {"null",
          "{}",
          "[]",
          "\\n",
          "\"model_type\": \"mixtral\", ",
          "\"rope_parameters\": {\"rope_theta\": 1e4}, ",
          "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}, ",
          "\"layer_types\": [\"full_attention\", \"sliding_attention\"], ",
          "\"mlp_only_layers\": [-1], ",
          "\"num_hidden_layers\": 65536, ",
          "\"sliding_window\": 8, ",
          "\"use_sliding_window\": true, ",
          "\"quantization_config\": [], ",
          std::string(100'000, '[')};
}

void fuzz_one(const std::string& input) {
  static const ScratchFolder folder;
  folder.put("model.safetensors", std::string("\2\0\0\0\0\0\0\0{}", 10));  // no tensors
  folder.put("config.json", input);
  const HubModel hub = open_hub_model(folder.path());
  const ModelConfig model = parse_model_config(hub.config);
  MANIPLE_INVARIANT(num_active_parameters(model) <= num_parameters(model) && num_parameters(model) > 0,
                    "{} of {} parameters", num_active_parameters(model), num_parameters(model));
  MANIPLE_INVARIANT(flops_per_token(model, 16) > 0, "no work");
  if (model.num_layers() > 100) return;  // all that follows is per layer
  for (const NamedShape& parameter : model_parameters(model))
    for (const int64_t n : parameter.shape) MANIPLE_INVARIANT(n > 0, "{} of {}", n, parameter.name);
  if (model.model_type != "house") gguf_metadata(model, "fuzz");
}

}  // namespace maniple

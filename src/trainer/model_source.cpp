#include "trainer/model_source.h"

#include <algorithm>
#include <filesystem>

#include "core/config_schema.h"
#include "core/errors.h"
#include "core/files.h"
#include "interop/hub_model.h"
#include "interop/safetensors.h"
#include "parallel/parameters.h"
#include "trainer/checkpoint_weights.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kIndex = "/model.safetensors.index.json";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

ordered_json read_config(const std::string& path) {
  ordered_json config = ordered_json::parse(read_file(path, "model config"), nullptr, false);
  if (!config.is_object())
    throw DataError(fmt::format("reading {}: it is not a JSON object", path));
  return config;
}

std::map<std::string, at::ScalarType> types_of(const std::map<std::string, std::string>& headers,
                                               const std::string& hub) {
  std::map<std::string, at::ScalarType> types;
  for (const auto& [file, header] : headers)
    for (const SafetensorsEntry& entry : parse_safetensors_header(hub + "/headers/" + file, header))
      types[entry.name] = entry.dtype;
  return types;
}

// Router and QK-norms are trained in fp32 whatever the precision.
void keep_partial_wide(const ModelConfig& model, std::map<std::string, at::ScalarType>& types) {
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    for (const char* leaf : {"mlp.gate.weight", "block_sparse_moe.gate.weight",
                             "self_attn.q_norm.weight", "self_attn.k_norm.weight"})
      types[layer + leaf] = at::kFloat;
  }
}

ModelSource open_checkpoint_source(const std::string& path) {
  const CheckpointInfo checkpoint = open_checkpoint(path);
  const Config config =
      parse_config(checkpoint.meta.at("config").get<std::string>(), checkpoint.folder);
  const std::string hub = hub_folder_of(checkpoint);
  ModelSource source;
  source.config = checkpoint_model_json(checkpoint, config.model);
  source.model = parse_model_config(nlohmann::json(source.config));
  source.format = config.quant.format;
  const at::ScalarType computed = compute_type(parse_precision(config.train.precision));
  source.model_type = computed == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
  source.wide = computed == at::kDouble;
  std::map<std::string, at::ScalarType> types;
  if (source.format != "none") {
    source.grid = make_grid(source.format, source.model_type);
    if (source.model_type == at::kBFloat16) keep_partial_wide(source.model, types);
  } else if (!hub.empty()) {
    source.headers = kept_headers(hub);
    types = types_of(source.headers, hub);
    if (types.count(kEmbedding)) source.model_type = types.at(kEmbedding);
    if (config.model.overrides.empty() && fs::exists(hub + "/config.json"))
      source.config_text = read_file(hub + "/config.json");
    if (fs::exists(hub + kIndex)) source.index_path = hub + kIndex;
  }
  if (!hub.empty()) source.companions = hub;
  const auto& data = config.data.sources;
  source.byte_tokens =
      !data.empty() &&
      std::all_of(data.begin(), data.end(), [](const SourceConfig& s) { return s.kind == "text"; });
  source.weights =
      std::make_unique<CheckpointWeights>(checkpoint, source.model, source.model_type, types);
  return source;
}

ModelSource open_hub_source(const std::string& path) {
  HubModel hub = open_hub_model(path);
  ModelSource source;
  const bool folder = !path.ends_with(".gguf");
  source.config = folder ? read_config(path + "/config.json") : ordered_json(hub.config);
  source.model = parse_model_config(hub.config);
  if (!hub.tensors->has(kEmbedding))
    throw DataError(
        fmt::format("reading the weights {}: the tensor {} is missing", path, kEmbedding));
  source.model_type = hub.tensors->entry(kEmbedding).dtype;
  if (folder) source.companions = path;
  const bool packed = source.config.contains("quantization_config");
  source.config.erase("quantization_config");
  if (folder && !packed) {
    source.config_text = read_file(path + "/config.json");
    source.headers = SafetensorsFolder(path).headers();
    if (fs::exists(path + kIndex)) source.index_path = path + kIndex;
  }
  source.weights = std::move(hub.tensors);
  return source;
}

}  // namespace

std::string hub_folder_of(const CheckpointInfo& checkpoint) {
  const fs::path hub = fs::path(checkpoint.folder).parent_path().parent_path() / "hub";
  return fs::is_directory(hub) ? hub.string() : "";
}

ordered_json checkpoint_model_json(const CheckpointInfo& checkpoint, const ModelSection& section) {
  const std::string hub = hub_folder_of(checkpoint);
  ordered_json config;
  if (!section.hf_config.empty()) {
    const std::string kept = hub + "/config.json";
    config = read_config(!hub.empty() && fs::exists(kept) ? kept : section.hf_config);
  } else {
    config = preset_config(section.preset.empty() ? "house" : section.preset);
    if (config["layer_types"].is_null()) config.erase("layer_types");
  }
  for (const auto& [key, value] : section.overrides.items()) config[key] = value;
  return config;
}

ModelSource open_model_source(const std::string& path) {
  return is_hub_model(path) ? open_hub_source(path) : open_checkpoint_source(path);
}

}  // namespace maniple

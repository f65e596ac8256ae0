#include "interop/compressed_tensors.h"

#include "core/errors.h"
#include "core/text.h"

namespace maniple {
namespace {

using nlohmann::json;

constexpr int64_t kPerWord = 8, kBits = 4;
constexpr const char *kPacked = "_packed", *kScale = "_scale", *kShape = "_shape";

int64_t words_of(int64_t inputs) { return (inputs + kPerWord - 1) / kPerWord; }

bool is_part(const std::string& name, const char* tail) {
  return name.ends_with(std::string(".weight") + tail);
}

}  // namespace

PackedWeight pack_weight(const Grid& grid, const at::Tensor& w_OI) {
  const Quantized quantized = quantize(grid, w_OI);
  const int64_t rows = w_OI.size(0), inputs = w_OI.size(1), words = words_of(inputs);
  const at::Tensor packed = at::zeros({rows, words}, at::TensorOptions(at::kInt));
  const auto* q = quantized.q_OI.const_data_ptr<int8_t>();
  auto* to = packed.data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < inputs; ++i) {
      const auto code = static_cast<uint32_t>(q[r * inputs + i] + 8) << (kBits * (i % kPerWord));
      int32_t& word = to[r * words + i / kPerWord];
      word = static_cast<int32_t>(static_cast<uint32_t>(word) | code);
    }
  return {packed, quantized.scale_OG.to(grid.model_type),
          at::tensor(std::vector<int64_t>{rows, inputs}, at::TensorOptions(at::kLong))};
}

at::Tensor unpack_weight(const PackedWeight& parts) {
  const int64_t rows = parts.packed.size(0), words = parts.packed.size(1);
  const int64_t inputs = parts.shape[1].item<int64_t>();
  const at::Tensor q = at::empty({rows, inputs}, at::TensorOptions(at::kChar));
  const auto* from = parts.packed.const_data_ptr<int32_t>();
  auto* to = q.data_ptr<int8_t>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < inputs; ++i) {
      const auto word = static_cast<uint32_t>(from[r * words + i / kPerWord]);
      to[r * inputs + i] =
          static_cast<int8_t>(static_cast<int>(word >> (kBits * (i % kPerWord)) & 15) - 8);
    }
  return dequantize({q, parts.scale.to(at::kFloat)});
}

nlohmann::ordered_json quantization_config(const Grid& grid,
                                           const std::vector<std::string>& modules_ignored) {
  nlohmann::ordered_json weights = {{"num_bits", kBits}, {"type", "int"}, {"symmetric", true}};
  weights["strategy"] = grid.group ? "group" : "channel";
  weights["group_size"] =
      grid.group ? nlohmann::ordered_json(grid.group) : nlohmann::ordered_json(nullptr);
  weights["dynamic"] = false;
  nlohmann::ordered_json section;
  section["quant_method"] = "compressed-tensors";
  section["format"] = "pack-quantized";
  section["quantization_status"] = "compressed";
  section["config_groups"]["group_0"] = {{"targets", {"Linear"}},
                                         {"weights", weights},
                                         {"input_activations", nullptr},
                                         {"output_activations", nullptr}};
  section["ignore"] = modules_ignored;
  section["kv_cache_scheme"] = nullptr;
  return section;
}

void check_quantization_config(const json& section, const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    throw DataError(
        fmt::format("reading {}: its quantization_config {}; only compressed-tensors "
                    "pack-quantized with symmetric int4 weights is supported",
                    path, one_line(why)));
  };
  const auto text = [&](const json& object, const char* key) -> std::string {
    return object.is_object() && object.contains(key) && object[key].is_string()
               ? object[key].get<std::string>()
               : "";
  };
  if (text(section, "quant_method") != "compressed-tensors")
    refuse(fmt::format("has quant_method '{}'", text(section, "quant_method")));
  if (text(section, "format") != "pack-quantized")
    refuse(fmt::format("has format '{}'", text(section, "format")));
  if (section.contains("kv_cache_scheme") && !section["kv_cache_scheme"].is_null())
    refuse("has a kv_cache_scheme");
  const json groups = section.value("config_groups", json::object());
  if (!groups.is_object() || groups.empty()) refuse("has no config_groups");
  for (const auto& [name, group] : groups.items()) {
    if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object())
      refuse(fmt::format("has no weights in {}", name));
    const json& weights = group["weights"];
    if (weights.value("num_bits", json()) != json(kBits) || text(weights, "type") != "int" ||
        weights.value("symmetric", json()) != json(true))
      refuse(fmt::format("has other weights in {}", name));
    if (group.contains("input_activations") && !group["input_activations"].is_null())
      refuse(fmt::format("quantises activations in {}", name));
  }
}

CompressedFolder::CompressedFolder(std::unique_ptr<HubTensors> stored)
    : stored_(std::move(stored)) {
  for (const std::string& name : stored_->names()) {
    if (is_part(name, "_zero_point") || is_part(name, "_g_idx"))
      throw DataError(
          fmt::format("reading the weights {}: {}: asymmetric grids and reordered groups are "
                      "not supported",
                      path(), name));
    if (!is_part(name, kPacked)) continue;
    const std::string plain = name.substr(0, name.size() - std::string(kPacked).size());
    const auto fail = [&](const std::string& why) {
      throw DataError(
          fmt::format("reading the weights {}: the packed tensor {} {}", path(), plain, why));
    };
    if (!stored_->has(plain + kScale) || !stored_->has(plain + kShape))
      fail("has no scale or no shape");
    const SafetensorsEntry &packed = stored_->entry(name), &scale = stored_->entry(plain + kScale);
    const SafetensorsEntry& shape = stored_->entry(plain + kShape);
    if (packed.dtype != at::kInt || packed.shape.size() != 2 || scale.shape.size() != 2 ||
        !c10::isFloatingType(scale.dtype) || shape.shape != std::vector<int64_t>{2} ||
        !c10::isIntegralType(shape.dtype, false))
      fail("has parts of other types or dims");
    const at::Tensor extents = stored_->read(plain + kShape).to(at::kLong);
    const int64_t rows = extents[0].item<int64_t>(), inputs = extents[1].item<int64_t>();
    if (rows != packed.shape[0] || rows != scale.shape[0] || inputs < 1 ||
        packed.shape[1] != words_of(inputs) || scale.shape[1] < 1 || inputs % scale.shape[1] != 0)
      fail(fmt::format("of shape [{}, {}] has parts of other shapes", rows, inputs));
    packed_[plain] = {plain, at::kFloat, {rows, inputs}};
  }
}

bool CompressedFolder::has(const std::string& name) const {
  return packed_.count(name) > 0 || stored_->has(name);
}

std::vector<std::string> CompressedFolder::names() const {
  std::map<std::string, bool> names;
  for (const std::string& name : stored_->names())
    if (!is_part(name, kPacked) && !is_part(name, kScale) && !is_part(name, kShape))
      names[name] = true;
  for (const auto& [name, entry] : packed_) names[name] = true;
  std::vector<std::string> sorted;
  for (const auto& [name, present] : names) sorted.push_back(name);
  return sorted;
}

const SafetensorsEntry& CompressedFolder::entry(const std::string& name) const {
  const auto found = packed_.find(name);
  return found != packed_.end() ? found->second : stored_->entry(name);
}

at::Tensor CompressedFolder::read(const std::string& name) const {
  if (!packed_.count(name)) return stored_->read(name);
  return unpack_weight(
      {stored_->read(name + kPacked), stored_->read(name + kScale), stored_->read(name + kShape)});
}

}  // namespace maniple

#include "interop/hf_names.h"

#include <set>

#include "core/errors.h"

namespace maniple {
namespace {

constexpr const char* kGateUp = "mlp.experts.gate_up_proj";
constexpr const char* kDown = "mlp.experts.down_proj";
constexpr const char* kRouter = "mlp.gate.weight";

std::string layer_prefix(int64_t layer) { return fmt::format("model.layers.{}.", layer); }

void add_gated(const std::string& prefix, int64_t hidden, int64_t width,
               std::vector<NamedShape>& out) {
  out.push_back({prefix + "gate_proj.weight", {width, hidden}});
  out.push_back({prefix + "up_proj.weight", {width, hidden}});
  out.push_back({prefix + "down_proj.weight", {hidden, width}});
}

void add_attention(const ModelConfig& m, const std::string& prefix, std::vector<NamedShape>& out) {
  const int64_t q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  const std::string attention = prefix + "self_attn.";
  out.push_back({prefix + "input_layernorm.weight", {m.hidden_size}});
  for (const auto& [name, rows] : {std::pair{"q", q}, std::pair{"k", kv}, std::pair{"v", kv}}) {
    out.push_back({attention + name + "_proj.weight", {rows, m.hidden_size}});
    if (m.qkv_bias) out.push_back({attention + name + "_proj.bias", {rows}});
  }
  if (m.qk_norm) {
    out.push_back({attention + "q_norm.weight", {m.head_dim}});
    out.push_back({attention + "k_norm.weight", {m.head_dim}});
  }
  out.push_back({attention + "o_proj.weight", {m.hidden_size, q}});
  out.push_back({prefix + "post_attention_layernorm.weight", {m.hidden_size}});
}

void add_moe(const ModelConfig& m, const std::string& prefix, std::vector<NamedShape>& out) {
  out.push_back({prefix + kRouter, {m.num_experts, m.hidden_size}});
  if (m.router_bias) out.push_back({prefix + "mlp.router_bias", {m.num_experts}});
  out.push_back({prefix + kGateUp, {m.num_experts, 2, m.expert_size, m.hidden_size}});
  out.push_back({prefix + kDown, {m.num_experts, m.hidden_size, m.expert_size}});
  if (m.shared_expert_size > 0)
    add_gated(prefix + "mlp.shared_expert.", m.hidden_size, m.shared_expert_size, out);
  if (m.shared_expert_gate)
    out.push_back({prefix + "mlp.shared_expert_gate.weight", {1, m.hidden_size}});
}

void add_layer(const ModelConfig& m, int64_t layer, std::vector<NamedShape>& out) {
  const std::string prefix = layer_prefix(layer);
  add_attention(m, prefix, out);
  if (m.post_norms) out.push_back({prefix + "pre_feedforward_layernorm.weight", {m.hidden_size}});
  if (m.layers[layer].moe)
    add_moe(m, prefix, out);
  else
    add_gated(prefix + "mlp.", m.hidden_size, m.intermediate_size, out);
  if (m.post_norms) out.push_back({prefix + "post_feedforward_layernorm.weight", {m.hidden_size}});
}

// The layer that a name belongs to, or -1.
int64_t layer_of(const ModelConfig& m, const std::string& name) {
  const std::string head = "model.layers.";
  if (name.rfind(head, 0) != 0) return -1;
  int64_t layer = 0;
  size_t at = head.size();
  for (; at < name.size() && name[at] >= '0' && name[at] <= '9' && layer < m.num_layers(); ++at)
    layer = layer * 10 + (name[at] - '0');
  return layer < m.num_layers() && name.rfind(layer_prefix(layer), 0) == 0 ? layer : -1;
}

std::vector<int64_t> shape_of(const ModelConfig& m, const std::string& name) {
  std::vector<NamedShape> candidates;
  if (const int64_t layer = layer_of(m, name); layer >= 0) {
    add_layer(m, layer, candidates);
  } else {
    candidates.push_back({"model.embed_tokens.weight", {m.vocab_size, m.hidden_size}});
    candidates.push_back({"model.norm.weight", {m.hidden_size}});
    if (!m.tied_head) candidates.push_back({"lm_head.weight", {m.vocab_size, m.hidden_size}});
  }
  for (const NamedShape& candidate : candidates)
    if (candidate.name == name) return candidate.shape;
  throw InternalError(fmt::format("the model {} has no parameter {}", m.model_type, name));
}

struct ExpertNames {
  std::string prefix;  // in front of the expert's number
  const char *gate, *up, *down;
};

ExpertNames expert_names(const ModelConfig& m, const std::string& layer) {
  if (m.model_type == "mixtral") return {layer + "block_sparse_moe.experts.", "w1", "w3", "w2"};
  return {layer + "mlp.experts.", "gate_proj", "up_proj", "down_proj"};
}

std::string join(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

void check_tensor(const HubTensors& folder, const std::string& parameter,
                  const std::string& name, const std::vector<int64_t>& shape) {
  if (!folder.has(name))
    throw DataError(fmt::format("loading {} from {}: the tensor {} is missing", parameter,
                                folder.path(), name));
  const SafetensorsEntry& entry = folder.entry(name);
  if (entry.shape != shape)
    throw DataError(
        fmt::format("loading {} from {}: the tensor {} has shape {}, the config asks "
                    "for {}",
                    parameter, folder.path(), name, join(entry.shape), join(shape)));
  if (!c10::isFloatingType(entry.dtype))
    throw DataError(
        fmt::format("loading {} from {}: the tensor {} is of type {}, not floating "
                    "point",
                    parameter, folder.path(), name, c10::toString(entry.dtype)));
}

// The name of the whole parameter as transformers 5 holds it in memory, and its shape there.
NamedShape merged_tensor(const std::string& parameter, std::vector<int64_t> shape) {
  if (parameter.ends_with(kGateUp)) shape = {shape[0], shape[1] * shape[2], shape[3]};
  return {parameter, std::move(shape)};
}

}  // namespace

std::vector<NamedShape> model_parameters(const ModelConfig& model) {
  std::vector<NamedShape> out;
  out.push_back({"model.embed_tokens.weight", {model.vocab_size, model.hidden_size}});
  for (int64_t layer = 0; layer < model.num_layers(); ++layer) add_layer(model, layer, out);
  out.push_back({"model.norm.weight", {model.hidden_size}});
  if (!model.tied_head) out.push_back({"lm_head.weight", {model.vocab_size, model.hidden_size}});
  return out;
}

std::vector<HubSlice> hub_slices(const ModelConfig& model, const std::string& parameter) {
  const std::vector<int64_t> shape = shape_of(model, parameter);
  const int64_t layer = layer_of(model, parameter);
  if (layer < 0) return {{parameter, shape, {}}};
  const std::string prefix = layer_prefix(layer);
  if (parameter == prefix + kRouter && model.model_type == "mixtral")
    return {{prefix + "block_sparse_moe.gate.weight", shape, {}}};

  const bool gate_up = parameter == prefix + kGateUp;
  if (!gate_up && parameter != prefix + kDown) return {{parameter, shape, {}}};
  const ExpertNames names = expert_names(model, prefix);
  const std::vector<int64_t> wide{model.expert_size, model.hidden_size};
  const std::vector<int64_t> narrow{model.hidden_size, model.expert_size};
  std::vector<HubSlice> slices;
  for (int64_t e = 0; e < model.num_experts; ++e) {
    const std::string expert = fmt::format("{}{}.", names.prefix, e);
    if (gate_up) {
      slices.push_back({expert + names.gate + ".weight", wide, {e, 0}});
      slices.push_back({expert + names.up + ".weight", wide, {e, 1}});
    } else {
      slices.push_back({expert + names.down + ".weight", narrow, {e}});
    }
  }
  return slices;
}

at::Tensor load_parameter(const HubTensors& folder, const ModelConfig& model,
                          const std::string& parameter) {
  const std::vector<int64_t> shape = shape_of(model, parameter);
  const std::vector<HubSlice> slices = hub_slices(model, parameter);
  if (!folder.has(slices.front().name) && folder.has(parameter)) {
    const NamedShape merged = merged_tensor(parameter, shape);
    check_tensor(folder, parameter, merged.name, merged.shape);
    return folder.read(merged.name).view(shape);
  }
  for (const HubSlice& slice : slices) check_tensor(folder, parameter, slice.name, slice.shape);
  if (slices.front().index.empty()) return folder.read(slices.front().name);

  const at::ScalarType dtype = folder.entry(slices.front().name).dtype;
  at::Tensor out = at::empty(shape, at::TensorOptions(dtype));
  for (const HubSlice& slice : slices) {
    if (folder.entry(slice.name).dtype != dtype)
      throw DataError(
          fmt::format("loading {} from {}: {} is of type {}, {} of type {}; one "
                      "parameter has one type",
                      parameter, folder.path(), slices.front().name, c10::toString(dtype),
                      slice.name, c10::toString(folder.entry(slice.name).dtype)));
    at::Tensor part = out;
    for (const int64_t i : slice.index) part = part.select(0, i);
    part.copy_(folder.read(slice.name));
  }
  return out;
}

std::vector<std::string> unread_tensors(const HubTensors& folder, const ModelConfig& model) {
  std::set<std::string> read;
  for (const NamedShape& parameter : model_parameters(model)) {
    const std::vector<HubSlice> slices = hub_slices(model, parameter.name);
    if (!folder.has(slices.front().name)) read.insert(parameter.name);
    for (const HubSlice& slice : slices) read.insert(slice.name);
  }
  if (model.tied_head) read.insert("lm_head.weight");
  std::vector<std::string> unread;
  for (const std::string& name : folder.names())
    if (!read.count(name) && !name.ends_with("rotary_emb.inv_freq")) unread.push_back(name);
  return unread;
}

}  // namespace maniple

#include "interop/gguf_model.h"

#include <fmt/ranges.h>

#include <cmath>

#include "core/errors.h"
#include "interop/hf_names.h"

namespace maniple {
namespace {


[[noreturn]] void refuse(const ModelConfig& model, const std::string& why) {
  throw ConfigError(fmt::format(
      "cannot write a model of the family {} as GGUF: {}; export it with --format hf or "
      "compressed-tensors",
      model.model_type, why));
}

// What readers of an architecture take for granted.
void check_expressible(const ModelConfig& m) {
  const std::string architecture = gguf_architecture(m);
  const bool gemma = architecture == "gemma3";
  for (int64_t i = 0; i < m.num_layers(); ++i) {
    if (!gemma && !m.layers[i].moe)
      refuse(m,
             fmt::format("layer {} is dense, and {} has experts in every layer", i, architecture));
    if (!gemma && m.layers[i].sliding)
      refuse(m,
             fmt::format("layer {} has a sliding window, which {} does not know", i, architecture));
    if (gemma && m.layers[i].sliding != ((i + 1) % kGgufGemmaPattern != 0))
      refuse(m, fmt::format("layer {} breaks the order of five sliding layers and a full one", i));
  }
  const auto expected_scale = std::pow(static_cast<double>(m.head_dim), -0.5);
  if (m.attention_scale != expected_scale)
    refuse(m, "query_pre_attn_scalar is not head_dim, and there is no key for it");
  const Activation activation = gemma ? Activation::kGeluTanh : Activation::kSilu;
  if (m.activation != activation) refuse(m, "the activation is not the architecture's own");
  if (architecture == "qwen3moe" && !m.normalize_topk)
    refuse(m, "norm_topk_prob is false, and qwen3moe means true");
  if (architecture == "qwen2moe" && m.normalize_topk)
    refuse(m, "norm_topk_prob is true, and qwen2moe means false");
  if (architecture == "qwen2moe" && !m.qkv_bias)
    refuse(m, "qkv_bias is false, and qwen2moe means true");
  if (architecture == "qwen2moe" && m.tied_head)
    refuse(m, "the head is tied, and qwen2moe needs one of its own");
  if (gemma && !m.tied_head) refuse(m, "the head is not tied, and gemma3 means that it is");
}

bool ends_with(const std::string& text, const char* tail) { return text.ends_with(tail); }

// Hub name behind "model.layers.I." -> GGUF name behind "blk.I.".
std::string part_name(const ModelConfig& m, const std::string& leaf) {
  static const std::map<std::string, std::string> names = {
      {"input_layernorm.weight", "attn_norm.weight"},
      {"self_attn.q_proj.weight", "attn_q.weight"},
      {"self_attn.k_proj.weight", "attn_k.weight"},
      {"self_attn.v_proj.weight", "attn_v.weight"},
      {"self_attn.q_proj.bias", "attn_q.bias"},
      {"self_attn.k_proj.bias", "attn_k.bias"},
      {"self_attn.v_proj.bias", "attn_v.bias"},
      {"self_attn.o_proj.weight", "attn_output.weight"},
      {"self_attn.q_norm.weight", "attn_q_norm.weight"},
      {"self_attn.k_norm.weight", "attn_k_norm.weight"},
      {"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
      {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
      {"mlp.gate_proj.weight", "ffn_gate.weight"},
      {"mlp.up_proj.weight", "ffn_up.weight"},
      {"mlp.down_proj.weight", "ffn_down.weight"},
      {"mlp.gate.weight", "ffn_gate_inp.weight"},
      {"mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"},
      {"mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"},
      {"mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"},
      {"mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"}};
  if (leaf == "post_attention_layernorm.weight")
    return m.post_norms ? "post_attention_norm.weight" : "ffn_norm.weight";
  const auto found = names.find(leaf);
  MANIPLE_INVARIANT(found != names.end(), "GGUF has no tensor for {}", leaf);
  return found->second;
}

// The experts of a layer: gate and up are one parameter here and two tensors there.
void add_experts(const ModelConfig& m, const std::string& parameter, const std::string& block,
                 std::vector<GgufPart>& out) {
  const bool down = ends_with(parameter, "down_proj");
  const int64_t E = m.num_experts, F = m.expert_size, D = m.hidden_size;
  std::vector<GgufPart> parts(down ? 1 : 2);
  parts[0].name = block + (down ? "ffn_down_exps.weight" : "ffn_gate_exps.weight");
  if (!down) parts[1].name = block + "ffn_up_exps.weight";
  for (const HubSlice& slice : hub_slices(m, parameter))
    parts[down ? 0 : slice.index[1]].hub.push_back(slice.name);
  for (GgufPart& part : parts) {
    part.parameter = parameter;
    part.shape = down ? std::vector<int64_t>{E, D, F} : std::vector<int64_t>{E, F, D};
    out.push_back(std::move(part));
  }
}

GgufPart plain_part(const ModelConfig& m, const NamedShape& parameter) {
  const std::string& name = parameter.name;
  GgufPart part{.name = "", .shape = parameter.shape, .parameter = name, .hub = {}};
  part.hub.push_back(hub_slices(m, name).front().name);
  part.matrix = parameter.shape.size() == 2 && !ends_with(name, "mlp.gate.weight");
  if (ends_with(name, "shared_expert_gate.weight")) {
    part.shape = {m.hidden_size};
    part.matrix = false;
  }
  if (m.norm_plus_one && ends_with(name, "norm.weight")) part.change = GgufPart::kPlusOne;
  if (m.model_type == "mixtral" &&
      (ends_with(name, "q_proj.weight") || ends_with(name, "k_proj.weight"))) {
    part.change = GgufPart::kPermute;
    part.heads = ends_with(name, "q_proj.weight") ? m.num_heads : m.num_kv_heads;
  }
  if (name == "model.embed_tokens.weight") {
    part.name = "token_embd.weight";
  } else if (name == "model.norm.weight") {
    part.name = "output_norm.weight";
  } else if (name == "lm_head.weight") {
    part.name = "output.weight";
  } else {
    const size_t begin = std::string("model.layers.").size(), dot = name.find('.', begin);
    part.name = "blk." + name.substr(begin, dot - begin) + "." + part_name(m, name.substr(dot + 1));
  }
  return part;
}

}  // namespace

std::vector<GgufPart> gguf_parts(const ModelConfig& model) {
  check_expressible(model);
  std::vector<GgufPart> parts;
  for (const NamedShape& parameter : model_parameters(model)) {
    const size_t at = parameter.name.find(".mlp.experts.");
    if (at == std::string::npos) {
      parts.push_back(plain_part(model, parameter));
    } else {
      const size_t begin = std::string("model.layers.").size();
      add_experts(model, parameter.name, "blk." + parameter.name.substr(begin, at - begin) + ".",
                  parts);
    }
  }
  return parts;
}

at::Tensor to_gguf(const GgufPart& part, const at::Tensor& hub) {
  if (part.change == GgufPart::kPlusOne) return hub.to(at::kFloat) + 1;
  if (part.change == GgufPart::kPermute)
    return hub.view({part.heads, 2, -1, hub.size(1)}).transpose(1, 2).reshape(hub.sizes());
  return hub;
}

at::Tensor from_gguf(const GgufPart& part, const at::Tensor& stored,
                     const std::vector<int64_t>& hub_shape) {
  const at::Tensor w = stored.view(hub_shape);
  if (part.change == GgufPart::kPlusOne) return w.to(at::kFloat) - 1;
  if (part.change == GgufPart::kPermute)
    return w.view({part.heads, -1, 2, hub_shape[1]}).transpose(1, 2).reshape(hub_shape);
  return w;
}

GgufTensors::GgufTensors(const std::string& path) : file_(path), config_(gguf_config(file_)) {
  ModelConfig model;
  std::vector<GgufPart> parts;
  try {
    model = parse_model_config(config_);
    parts = gguf_parts(model);
  } catch (const ConfigError& error) {
    throw DataError(fmt::format("the metadata of {}: {}", path, error.what()));
  }
  for (GgufPart& part : parts) {
    const auto stored = file_.tensors().find(part.name);
    if (stored == file_.tensors().end())
      throw DataError(
          fmt::format("{} has no tensor {}, which its metadata ask for", path, part.name));
    if (stored->second.shape != part.shape)
      throw DataError(fmt::format("{}: the tensor {} has shape [{}], its metadata ask for [{}]",
                                  path, part.name, fmt::join(stored->second.shape, ", "),
                                  fmt::join(part.shape, ", ")));
    std::vector<int64_t> shape = part.shape;
    if (part.hub.size() > 1 || part.parameter.find(".experts.") != std::string::npos)
      shape.erase(shape.begin());
    if (part.parameter.ends_with("shared_expert_gate.weight")) shape.insert(shape.begin(), 1);
    const GgufType type = stored->second.type;
    const at::ScalarType dtype = part.change == GgufPart::kPlusOne ? at::kFloat
                                 : type == GgufType::kF16          ? at::kHalf
                                 : type == GgufType::kBF16         ? at::kBFloat16
                                                                   : at::kFloat;
    for (size_t i = 0; i < part.hub.size(); ++i)
      places_[part.hub[i]] = {part, static_cast<int64_t>(i), {part.hub[i], dtype, shape}};
  }
}

std::vector<std::string> GgufTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

const GgufTensors::Place& GgufTensors::place(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end())
    throw DataError(fmt::format("reading the weights {}: there is no tensor {}", path(), name));
  return found->second;
}

const SafetensorsEntry& GgufTensors::entry(const std::string& name) const {
  return place(name).entry;
}

at::Tensor GgufTensors::read(const std::string& name) const {
  const Place& p = place(name);
  int64_t n = 1;
  for (const int64_t extent : p.entry.shape) n *= extent;
  return from_gguf(p.part, file_.read(p.part.name, p.index * n, n), p.entry.shape);
}

}  // namespace maniple

#include "interop/gguf_model.h"

#include <cmath>

#include <fmt/ranges.h>

#include "core/errors.h"
#include "interop/hf_names.h"

namespace maniple {
namespace {

using nlohmann::json;

constexpr int64_t kGemmaPattern = 6;  // every sixth layer is full: readers know no other

struct Architecture {
  const char *model_type, *name;
};
constexpr Architecture kArchitectures[] = {
    {"qwen3_moe", "qwen3moe"}, {"qwen2_moe", "qwen2moe"}, {"mixtral", "llama"}, {"gemma3_text", "gemma3"}};

[[noreturn]] void refuse(const ModelConfig& model, const std::string& why) {
  throw ConfigError(fmt::format(
      "cannot write a model of the family {} as GGUF: {}; export it with --format hf or "
      "compressed-tensors",
      model.model_type, why));
}

std::string architecture_of(const ModelConfig& model) {
  for (const Architecture& a : kArchitectures)
    if (model.model_type == a.model_type) return a.name;
  throw ConfigError(fmt::format(
      "cannot write a model of the family {} as GGUF: no runtime knows it; train one of the families "
      "qwen3_moe, qwen2_moe, mixtral or gemma3_text",
      model.model_type));
}

// What readers of an architecture take for granted.
void check_expressible(const ModelConfig& m) {
  const std::string architecture = architecture_of(m);
  const bool gemma = architecture == "gemma3";
  for (int64_t i = 0; i < m.num_layers(); ++i) {
    if (!gemma && !m.layers[i].moe)
      refuse(m, fmt::format("layer {} is dense, and {} has experts in every layer", i, architecture));
    if (!gemma && m.layers[i].sliding)
      refuse(m, fmt::format("layer {} has a sliding window, which {} does not know", i, architecture));
    if (gemma && m.layers[i].sliding != ((i + 1) % kGemmaPattern != 0))
      refuse(m, fmt::format("layer {} breaks the order of five sliding layers and a full one", i));
  }
  const auto expected_scale = std::pow(static_cast<double>(m.head_dim), -0.5);
  if (m.attention_scale != expected_scale)
    refuse(m, "query_pre_attn_scalar is not head_dim, and there is no key for it");
  const Activation activation = gemma ? Activation::kGeluTanh : Activation::kSilu;
  if (m.activation != activation) refuse(m, "the activation is not the architecture's own");
  if (architecture == "qwen3moe" && !m.normalize_topk) refuse(m, "norm_topk_prob is false, and qwen3moe means true");
  if (architecture == "qwen2moe" && m.normalize_topk) refuse(m, "norm_topk_prob is true, and qwen2moe means false");
  if (architecture == "qwen2moe" && !m.qkv_bias) refuse(m, "qkv_bias is false, and qwen2moe means true");
  if (architecture == "qwen2moe" && m.tied_head) refuse(m, "the head is tied, and qwen2moe needs one of its own");
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
  if (m.model_type == "mixtral" && (ends_with(name, "q_proj.weight") || ends_with(name, "k_proj.weight"))) {
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

// Metadata of one file, by type, with DataError for what is missing.
class Values {
 public:
  explicit Values(const GgufFile& file) : file_(file) {}

  [[noreturn]] void fail(const std::string& why) const {
    throw DataError(fmt::format("reading the model of {}: {}", file_.path(), why));
  }
  const GgufValue* find(const std::string& key) const {
    const auto at = file_.metadata().find(key);
    return at == file_.metadata().end() ? nullptr : &at->second;
  }
  std::string text(const std::string& key) const {
    const auto* value = find(key);
    const auto* text = value ? std::get_if<std::string>(value) : nullptr;
    if (!text) fail(key + " is missing, or no text");
    return *text;
  }
  int64_t integer(const std::string& key) const {
    const auto* value = find(key);
    if (const auto* x = value ? std::get_if<uint32_t>(value) : nullptr) return *x;
    if (const auto* x = value ? std::get_if<int64_t>(value) : nullptr) return *x;
    fail(key + " is missing, or no integer");
  }
  // The decimal number that was written as a float: 1e-6, not 9.99999997e-7.
  double number(const std::string& key) const {
    const auto* value = find(key);
    if (const auto* x = value ? std::get_if<float>(value) : nullptr) return std::stod(fmt::format("{}", *x));
    if (const auto* x = value ? std::get_if<double>(value) : nullptr) return *x;
    fail(key + " is missing, or no real number");
  }
  bool has(const std::string& key) const { return find(key) != nullptr; }

 private:
  const GgufFile& file_;
};

std::string model_type_of(const Values& in, const std::string& architecture) {
  for (const Architecture& a : kArchitectures)
    if (architecture == a.name) return a.model_type;
  in.fail(fmt::format("general.architecture = {}; qwen3moe, qwen2moe, llama with experts and gemma3 are "
                      "supported",
                      architecture));
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
      add_experts(model, parameter.name, "blk." + parameter.name.substr(begin, at - begin) + ".", parts);
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

GgufMetadata gguf_metadata(const ModelConfig& m, const std::string& name) {
  const std::string arch = architecture_of(m), prefix = arch + ".";
  GgufMetadata out = {{"general.architecture", arch},
                      {"general.type", std::string("model")},
                      {"general.name", name},
                      {"general.alignment", uint32_t{32}}};
  const auto integer = [&](const std::string& key, int64_t value) {
    out.emplace_back(prefix + key, static_cast<uint32_t>(value));
  };
  const auto real = [&](const std::string& key, double value) {
    out.emplace_back(prefix + key, static_cast<float>(value));
  };
  const bool moe = m.num_experts > 0;
  integer("block_count", m.num_layers());
  integer("context_length", m.max_position_embeddings);
  integer("embedding_length", m.hidden_size);
  integer("feed_forward_length", m.intermediate_size ? m.intermediate_size : m.expert_size);
  integer("vocab_size", m.vocab_size);
  integer("attention.head_count", m.num_heads);
  integer("attention.head_count_kv", m.num_kv_heads);
  integer("attention.key_length", m.head_dim);
  integer("attention.value_length", m.head_dim);
  real("attention.layer_norm_rms_epsilon", m.rms_norm_eps);
  integer("rope.dimension_count", m.head_dim);
  real("rope.freq_base", m.rope_full.theta);
  if (m.rope_full.linear_factor != 1) {
    out.emplace_back(prefix + "rope.scaling.type", std::string("linear"));
    real("rope.scaling.factor", m.rope_full.linear_factor);
  }
  if (arch == "gemma3") {
    integer("attention.sliding_window", m.sliding_window);
    real("rope.freq_base_swa", m.rope_sliding.theta);
  }
  if (moe) {
    integer("expert_count", m.num_experts);
    integer("expert_used_count", m.experts_per_token);
    if (arch != "llama") integer("expert_feed_forward_length", m.expert_size);
    if (m.shared_expert_size > 0) integer("expert_shared_feed_forward_length", m.shared_expert_size);
  }
  return out;
}

json gguf_config(const GgufFile& file) {
  const Values in(file);
  const std::string arch = in.text("general.architecture"), prefix = arch + ".";
  const std::string type = model_type_of(in, arch);
  const auto integer = [&](const char* key) { return in.integer(prefix + key); };
  const auto vocabulary = file.tensors().find("token_embd.weight");
  if (vocabulary == file.tensors().end() || vocabulary->second.shape.size() != 2)
    in.fail("there is no matrix token_embd.weight");
  // Before anything is made of these numbers: the file holds so many layers and experts.
  const auto experts = file.tensors().find("blk.0.ffn_gate_exps.weight");
  if (integer("block_count") > static_cast<int64_t>(file.tensors().size()))
    in.fail(fmt::format("{}block_count = {} is more than its tensors", prefix, integer("block_count")));
  if (type != "gemma3_text" &&
      (experts == file.tensors().end() || experts->second.shape[0] != integer("expert_count")))
    in.fail(fmt::format("blk.0.ffn_gate_exps.weight does not hold {}expert_count experts", prefix));
  json config = {{"model_type", type},
                 {"vocab_size", vocabulary->second.shape[0]},
                 {"hidden_size", integer("embedding_length")},
                 {"num_hidden_layers", integer("block_count")},
                 {"num_attention_heads", integer("attention.head_count")},
                 {"num_key_value_heads", integer("attention.head_count_kv")},
                 {"max_position_embeddings", integer("context_length")},
                 {"rms_norm_eps", in.number(prefix + "attention.layer_norm_rms_epsilon")},
                 {"rope_theta", in.number(prefix + "rope.freq_base")},
                 {"rope_scaling", nullptr},
                 {"tie_word_embeddings", file.tensors().count("output.weight") == 0}};
  config["head_dim"] = in.has(prefix + "attention.key_length") ? json(integer("attention.key_length"))
                                                               : json(nullptr);
  if (in.has(prefix + "rope.scaling.type")) {
    const std::string kind = in.text(prefix + "rope.scaling.type");
    if (kind != "linear" && kind != "none")
      in.fail(fmt::format("{}rope.scaling.type = {}; only linear is supported", prefix, kind));
    if (kind == "linear")
      config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", in.number(prefix + "rope.scaling.factor")}};
  }
  if (type == "gemma3_text") {
    config.update({{"hidden_activation", "gelu_pytorch_tanh"},
                   {"intermediate_size", integer("feed_forward_length")},
                   {"sliding_window", integer("attention.sliding_window")},
                   {"sliding_window_pattern", kGemmaPattern},
                   {"rope_local_base_freq", in.has(prefix + "rope.freq_base_swa")
                                                ? in.number(prefix + "rope.freq_base_swa")
                                                : 1e4}});
    const json head = config["head_dim"];
    config["query_pre_attn_scalar"] =
        head.is_null() ? config["hidden_size"].get<int64_t>() / std::max<int64_t>(1, integer("attention.head_count"))
                       : head.get<int64_t>();
    return config;
  }
  config["hidden_act"] = "silu";
  config["num_experts_per_tok"] = integer("expert_used_count");
  if (type == "mixtral") {
    config["num_local_experts"] = integer("expert_count");
    config["intermediate_size"] = integer("feed_forward_length");
    config["sliding_window"] = nullptr;
    return config;
  }
  config.update({{"num_experts", integer("expert_count")},
                 {"moe_intermediate_size", integer("expert_feed_forward_length")},
                 {"norm_topk_prob", type == "qwen3_moe"},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", json::array()}});
  if (type == "qwen2_moe")
    config["shared_expert_intermediate_size"] = integer("expert_shared_feed_forward_length");
  return config;
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
      throw DataError(fmt::format("{} has no tensor {}, which its metadata ask for", path, part.name));
    if (stored->second.shape != part.shape)
      throw DataError(fmt::format("{}: the tensor {} has shape [{}], its metadata ask for [{}]", path,
                                  part.name, fmt::join(stored->second.shape, ", "),
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

const SafetensorsEntry& GgufTensors::entry(const std::string& name) const { return place(name).entry; }

at::Tensor GgufTensors::read(const std::string& name) const {
  const Place& p = place(name);
  int64_t n = 1;
  for (const int64_t extent : p.entry.shape) n *= extent;
  return from_gguf(p.part, file_.read(p.part.name, p.index * n, n), p.entry.shape);
}

}  // namespace maniple

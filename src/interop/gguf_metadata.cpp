#include <fmt/ranges.h>

#include "core/errors.h"
#include "interop/gguf_model.h"

namespace maniple {
namespace {

using nlohmann::json;

struct Architecture {
  const char *model_type, *name;
};
constexpr Architecture kArchitectures[] = {{"qwen3_moe", "qwen3moe"},
                                           {"qwen2_moe", "qwen2moe"},
                                           {"mixtral", "llama"},
                                           {"gemma3_text", "gemma3"}};

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
    if (const auto* x = value ? std::get_if<float>(value) : nullptr)
      return std::stod(fmt::format("{}", *x));
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
  in.fail(fmt::format(
      "general.architecture = {}; qwen3moe, qwen2moe, llama with experts and gemma3 are "
      "supported",
      architecture));
}

}  // namespace

std::string gguf_architecture(const ModelConfig& model) {
  for (const Architecture& a : kArchitectures)
    if (model.model_type == a.model_type) return a.name;
  throw ConfigError(
      fmt::format("cannot write a model of the family {} as GGUF: no runtime knows it; train one "
                  "of the families "
                  "qwen3_moe, qwen2_moe, mixtral or gemma3_text",
                  model.model_type));
}

GgufMetadata gguf_metadata(const ModelConfig& m, const std::string& name) {
  const std::string arch = gguf_architecture(m), prefix = arch + ".";
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
    if (m.shared_expert_size > 0)
      integer("expert_shared_feed_forward_length", m.shared_expert_size);
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
    in.fail(
        fmt::format("{}block_count = {} is more than its tensors", prefix, integer("block_count")));
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
  config["head_dim"] = in.has(prefix + "attention.key_length")
                           ? json(integer("attention.key_length"))
                           : json(nullptr);
  if (in.has(prefix + "rope.scaling.type")) {
    const std::string kind = in.text(prefix + "rope.scaling.type");
    if (kind != "linear" && kind != "none")
      in.fail(fmt::format("{}rope.scaling.type = {}; only linear is supported", prefix, kind));
    if (kind == "linear")
      config["rope_scaling"] = {{"rope_type", "linear"},
                                {"factor", in.number(prefix + "rope.scaling.factor")}};
  }
  if (type == "gemma3_text") {
    config.update(
        {{"hidden_activation", "gelu_pytorch_tanh"},
         {"intermediate_size", integer("feed_forward_length")},
         {"sliding_window", integer("attention.sliding_window")},
         {"sliding_window_pattern", kGgufGemmaPattern},
         {"rope_local_base_freq",
          in.has(prefix + "rope.freq_base_swa") ? in.number(prefix + "rope.freq_base_swa") : 1e4}});
    const json head = config["head_dim"];
    config["query_pre_attn_scalar"] =
        head.is_null() ? config["hidden_size"].get<int64_t>() /
                             std::max<int64_t>(1, integer("attention.head_count"))
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

}  // namespace maniple

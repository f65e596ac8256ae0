#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>

#include "core/errors.h"
#include "core/text.h"

namespace maniple {
namespace {

using nlohmann::json;

constexpr int64_t kMaxDimension = int64_t{1} << 31;
constexpr int64_t kMaxLayers = 1 << 16;
constexpr double kMaxParameters = 1e18;  // keeps every product of dimensions inside int64

[[noreturn]] void refuse(const std::string& field, const std::string& value,
                         const std::string& rule) {
  throw ConfigError(
      fmt::format("reading the model config: {} = {}: {}", one_line(field), one_line(value), rule));
}

std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

// Typed access to the fields of one JSON object. A null field counts as absent, as in Hugging Face.
class Fields {
 public:
  explicit Fields(const json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {
    if (!object.is_object())
      refuse(prefix_.empty() ? "config" : prefix_, shown(object), "must be a JSON object");
  }

  const json* find(const std::string& name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool has(const std::string& name) const { return find(name) != nullptr; }
  std::string path(const std::string& name) const {
    return prefix_.empty() ? name : prefix_ + "." + name;
  }

  int64_t integer(const std::string& name, int64_t low,
                  std::optional<int64_t> fallback = {}) const {
    const json* value = get(name, fallback.has_value());
    if (!value) return *fallback;
    // A float that is whole (512.0) is not an integer here: Hugging Face would not accept it
    // either.
    const bool fits = value->is_number_integer() &&
                      !(value->is_number_unsigned() &&
                        value->get<uint64_t>() > static_cast<uint64_t>(kMaxDimension));
    if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > kMaxDimension)
      refuse(path(name), shown(*value), fmt::format("must be an integer from {} to 2^31", low));
    return value->get<int64_t>();
  }

  double number(const std::string& name, double low, std::optional<double> fallback = {}) const {
    const json* value = get(name, fallback.has_value());
    if (!value) return *fallback;
    if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() < low)
      refuse(path(name), shown(*value), fmt::format("must be a finite number of at least {}", low));
    return value->get<double>();
  }

  double positive_number(const std::string& name, std::optional<double> fallback = {}) const {
    const double value = number(name, 0, fallback);
    if (!(value > 0)) refuse(path(name), fmt::format("{}", value), "must be greater than 0");
    return value;
  }

  bool boolean(const std::string& name, std::optional<bool> fallback = {}) const {
    const json* value = get(name, fallback.has_value());
    if (!value) return *fallback;
    if (!value->is_boolean()) refuse(path(name), shown(*value), "must be true or false");
    return value->get<bool>();
  }

  std::string text(const std::string& name, std::optional<std::string> fallback = {}) const {
    const json* value = get(name, fallback.has_value());
    if (!value) return *fallback;
    if (!value->is_string()) refuse(path(name), shown(*value), "must be a string");
    return value->get<std::string>();
  }

  // Refuses a feature that is switched on: absent, null and `off` pass.
  void unsupported(const std::string& name, const json& off, const std::string& what) const {
    const json* value = find(name);
    if (value && *value != off)
      refuse(path(name), shown(*value),
             fmt::format("{} is not supported; only null{} is", what,
                         off.is_null() ? "" : " or " + off.dump()));
  }

  const json& object() const { return object_; }

 private:
  const json* get(const std::string& name, bool optional) const {
    const json* value = find(name);
    if (!value && !optional) refuse(path(name), "(missing)", "this field is required");
    return value;
  }

  const json& object_;
  std::string prefix_;
};

// --- rotary embedding
// -----------------------------------------------------------------------------

// `scaling`: {rope_type | type, factor, ...} of a rope_scaling or rope_parameters object.
double linear_factor(const Fields& scaling) {
  const char* const kind_name = scaling.has("rope_type") ? "rope_type" : "type";
  const std::string kind = scaling.text(kind_name, "default");
  scaling.unsupported("partial_rotary_factor", 1.0, "a partial rotary embedding");
  if (kind == "default") return 1;
  if (kind == "linear") return scaling.positive_number("factor");
  refuse(scaling.path(kind_name), kind, "only default and linear are supported");
}

RopeConfig rope_parameters(const Fields& parameters) {
  return {parameters.positive_number("rope_theta"), linear_factor(parameters)};
}

// One base for all layers: rope_theta with rope_scaling, or a flat rope_parameters.
RopeConfig read_rope(const Fields& fields) {
  fields.unsupported("partial_rotary_factor", 1.0, "a partial rotary embedding");
  if (const json* parameters = fields.find("rope_parameters")) {
    const RopeConfig rope = rope_parameters(Fields(*parameters, "rope_parameters"));
    if (fields.has("rope_theta") && fields.positive_number("rope_theta") != rope.theta)
      refuse("rope_theta", shown(*fields.find("rope_theta")),
             fmt::format("contradicts rope_parameters.rope_theta = {}; remove one", rope.theta));
    if (fields.has("rope_scaling"))
      refuse("rope_scaling", shown(*fields.find("rope_scaling")),
             "cannot stand beside rope_parameters; remove one");
    return rope;
  }
  RopeConfig rope{fields.positive_number("rope_theta"), 1};
  if (const json* scaling = fields.find("rope_scaling"))
    rope.linear_factor = linear_factor(Fields(*scaling, "rope_scaling"));
  return rope;
}

// Two bases: rope_scaling belongs to the full-attention layers alone (Gemma 3).
void read_two_ropes(const Fields& fields, ModelConfig& model) {
  if (const json* parameters = fields.find("rope_parameters")) {
    const Fields nested(*parameters, "rope_parameters");
    for (const char* kind : {"full_attention", "sliding_attention"})
      if (!nested.has(kind))
        refuse(nested.path(kind), "(missing)", "rope_parameters needs both kinds of layers");
    for (const char* flat : {"rope_theta", "rope_local_base_freq", "rope_scaling"})
      if (fields.has(flat))
        refuse(flat, shown(*fields.find(flat)), "cannot stand beside rope_parameters; remove one");
    model.rope_full =
        rope_parameters(Fields(*nested.find("full_attention"), "rope_parameters.full_attention"));
    model.rope_sliding = rope_parameters(
        Fields(*nested.find("sliding_attention"), "rope_parameters.sliding_attention"));
    return;
  }
  model.rope_full = read_rope(fields);
  model.rope_sliding = {fields.positive_number("rope_local_base_freq"), 1};
}

// --- layers
// ---------------------------------------------------------------------------------------

using SlidingRule = std::function<bool(int64_t layer)>;

// layer_types, where present, against the rule of the family. `list_wins`: the family's own code
// reads the list; elsewhere a list that says something else than the rule is refused.
void read_sliding(const Fields& fields, const SlidingRule& rule, bool list_wins,
                  ModelConfig& model) {
  const int64_t num_layers = model.num_layers();
  const json* list = fields.find("layer_types");
  if (list && (!list->is_array() || static_cast<int64_t>(list->size()) != num_layers))
    refuse("layer_types", shown(*list),
           fmt::format("must be a list of num_hidden_layers = {} words", num_layers));
  for (int64_t i = 0; i < num_layers; ++i) {
    bool& sliding = model.layers[i].sliding;
    if (!list || !list_wins) sliding = rule(i);
    if (!list) continue;
    const json& kind = (*list)[i];
    if (kind != "sliding_attention" && kind != "full_attention")
      refuse(fmt::format("layer_types[{}]", i), shown(kind),
             "only full_attention and sliding_attention are supported");
    const bool listed = kind == "sliding_attention";
    if (!list_wins && listed != sliding)
      refuse(fmt::format("layer_types[{}]", i), shown(kind),
             fmt::format("contradicts the sliding-window fields of {}", model.model_type));
    sliding = listed;
  }
  const bool any = std::any_of(model.layers.begin(), model.layers.end(),
                               [](const LayerConfig& layer) { return layer.sliding; });
  model.sliding_window = any ? fields.integer("sliding_window", 1) : 0;
}

SlidingRule every_nth_is_full(int64_t pattern) {
  return [pattern](int64_t layer) { return (layer + 1) % pattern != 0; };
}

int64_t sliding_pattern(const Fields& fields) {
  const char* const name =
      fields.has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
  // With an explicit list of layers the pattern is not needed.
  return fields.has("layer_types") ? fields.integer(name, 1, 1) : fields.integer(name, 1);
}

// --- parts that several types share
// ---------------------------------------------------------------

Activation read_activation(const Fields& fields, const std::string& name) {
  const std::string word = fields.text(name);
  if (word == "silu") return Activation::kSilu;
  if (word == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  refuse(name, word, "only silu and gelu_pytorch_tanh are supported");
}

void read_common(const Fields& fields, ModelConfig& model) {
  model.vocab_size = fields.integer("vocab_size", 1);
  model.hidden_size = fields.integer("hidden_size", 1);
  model.num_heads = fields.integer("num_attention_heads", 1);
  model.num_kv_heads = fields.integer("num_key_value_heads", 1);
  if (model.num_heads % model.num_kv_heads != 0)
    refuse("num_attention_heads", std::to_string(model.num_heads),
           fmt::format("must be divisible by num_key_value_heads = {}", model.num_kv_heads));
  if (!fields.has("head_dim") && model.hidden_size % model.num_heads != 0)
    refuse("hidden_size", std::to_string(model.hidden_size),
           fmt::format("must be divisible by num_attention_heads = {} where head_dim is not given",
                       model.num_heads));
  model.head_dim = fields.integer("head_dim", 1, model.hidden_size / model.num_heads);
  if (model.head_dim % 2 != 0)
    refuse("head_dim", std::to_string(model.head_dim), "must be even (rotary pairs)");
  model.attention_scale = std::pow(static_cast<double>(model.head_dim), -0.5);

  model.max_position_embeddings = fields.integer("max_position_embeddings", 1);
  model.rms_norm_eps = fields.positive_number("rms_norm_eps");
  model.initializer_range = fields.number("initializer_range", 0, 0.02);
  const int64_t num_layers = fields.integer("num_hidden_layers", 1);
  if (num_layers > kMaxLayers)
    refuse("num_hidden_layers", std::to_string(num_layers),
           fmt::format("at most {} layers are supported", kMaxLayers));
  model.layers.resize(num_layers);

  fields.unsupported("attention_dropout", 0.0, "attention dropout");
  fields.unsupported("attn_logit_softcapping", nullptr, "a soft-cap of attention scores");
  fields.unsupported("final_logit_softcapping", nullptr, "a soft-cap of logits");
  fields.unsupported("quantization_config", nullptr, "a quantised checkpoint");
  fields.unsupported("clip_qkv", nullptr, "clamping of q, k and v");
}

// num_experts (4.x Qwen) and num_local_experts (Mixtral, 5.x) are the same field.
int64_t read_num_experts(const Fields& fields, int64_t low) {
  const bool both = fields.has("num_experts") && fields.has("num_local_experts");
  const char* const name = fields.has("num_local_experts") ? "num_local_experts" : "num_experts";
  const int64_t count = fields.integer(name, low);
  if (both && fields.integer("num_experts", low) != count)
    refuse("num_experts", shown(*fields.find("num_experts")),
           fmt::format("contradicts num_local_experts = {}; remove one", count));
  return count;
}

void read_routed_experts(const Fields& fields, const std::string& size_field, ModelConfig& model) {
  model.experts_per_token = fields.integer("num_experts_per_tok", 1);
  if (model.experts_per_token > model.num_experts)
    refuse("num_experts_per_tok", std::to_string(model.experts_per_token),
           fmt::format("must be at most the number of experts, {}", model.num_experts));
  model.expert_size = fields.integer(size_field, 1);
  model.router_aux_coef = fields.number("router_aux_loss_coef", 0, 1e-3);
}

// Families whose experts are not in groups and whose routed experts have no scale.
void refuse_expert_groups(const Fields& fields) {
  fields.unsupported("n_group", 1, "group-limited routing");
  fields.unsupported("routed_scaling_factor", 1.0, "a scale of the routed experts");
}

// Group-limited routing: a token's experts lie in topk_group of n_group equal groups.
void read_expert_groups(const Fields& fields, ModelConfig& model) {
  model.expert_groups = fields.integer("n_group", 1, 1);
  model.groups_per_token = fields.integer("topk_group", 1, model.expert_groups);
  model.routed_scale = fields.number("routed_scaling_factor", 0, 1.0);
  const int64_t groups = model.expert_groups;
  if (groups == 1 && model.groups_per_token == 1) return;
  if (model.num_experts % groups != 0 || model.num_experts / groups < 2)
    refuse("n_group", std::to_string(groups),
           fmt::format("{} experts must be equal groups of at least two", model.num_experts));
  if (model.groups_per_token > groups)
    refuse("topk_group", std::to_string(model.groups_per_token),
           fmt::format("must be at most n_group, {}", groups));
  const int64_t reachable = model.groups_per_token * (model.num_experts / groups);
  if (model.experts_per_token > reachable)
    refuse("topk_group", std::to_string(model.groups_per_token),
           fmt::format("{} groups hold {} experts, fewer than num_experts_per_tok = {}",
                       model.groups_per_token, reachable, model.experts_per_token));
}

// --- families
// -------------------------------------------------------------------------------------

// Which layers of Qwen2-MoE and Qwen3-MoE are MoE (spec 1.10), and their experts.
void read_qwen_moe(const Fields& fields, ModelConfig& model) {
  model.activation = read_activation(fields, "hidden_act");
  model.rope_full = model.rope_sliding = read_rope(fields);
  model.tied_head = fields.boolean("tie_word_embeddings", false);
  model.num_experts = read_num_experts(fields, 0);
  const int64_t every = fields.integer("decoder_sparse_step", 1, 1);
  std::vector<bool> dense(model.num_layers(), false);
  if (const json* list = fields.find("mlp_only_layers")) {
    if (!list->is_array()) refuse("mlp_only_layers", shown(*list), "must be a list of layers");
    for (const json& layer : *list) {
      if (!layer.is_number_integer() || layer.get<int64_t>() < 0 ||
          layer.get<int64_t>() >= model.num_layers())
        refuse("mlp_only_layers", shown(*list),
               fmt::format("must hold layers from 0 to {}", model.num_layers() - 1));
      dense[layer.get<int64_t>()] = true;
    }
  }
  bool any_dense = false;
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    model.layers[i].moe = model.num_experts > 0 && !dense[i] && (i + 1) % every == 0;
    any_dense |= !model.layers[i].moe;
  }
  // The field stands in every file; without a dense layer its value means nothing.
  if (any_dense) model.intermediate_size = fields.integer("intermediate_size", 1);
  if (model.num_experts == 0) return;
  read_routed_experts(fields, "moe_intermediate_size", model);
  refuse_expert_groups(fields);
  model.normalize_topk = fields.boolean("norm_topk_prob");
}

void read_qwen3_moe(const Fields& fields, ModelConfig& model) {
  fields.unsupported("attention_bias", false, "an attention bias in qwen3_moe");
  read_qwen_moe(fields, model);
  model.qk_norm = true;
  const bool slide = fields.boolean("use_sliding_window", false);
  read_sliding(
      fields, [slide](int64_t) { return slide; }, /*list_wins=*/false, model);
}

void read_qwen2_moe(const Fields& fields, ModelConfig& model) {
  read_qwen_moe(fields, model);
  model.qkv_bias = fields.boolean("qkv_bias", true);
  if (model.num_experts > 0) {
    model.shared_expert_size = fields.integer("shared_expert_intermediate_size", 1);
    model.shared_expert_gate = true;
  }
  const bool slide = fields.boolean("use_sliding_window", false);
  const int64_t limit =
      slide && !fields.has("layer_types") ? fields.integer("max_window_layers", 0) : 0;
  read_sliding(
      fields, [slide, limit](int64_t i) { return slide && i % 2 == 0 && i < limit; },
      /*list_wins=*/true, model);
}

void read_mixtral(const Fields& fields, ModelConfig& model) {
  fields.unsupported("router_jitter_noise", 0.0, "router jitter");
  model.activation = read_activation(fields, "hidden_act");
  model.rope_full = model.rope_sliding = read_rope(fields);
  model.tied_head = fields.boolean("tie_word_embeddings", false);
  model.num_experts = read_num_experts(fields, 1);
  read_routed_experts(fields, "intermediate_size", model);
  refuse_expert_groups(fields);
  model.normalize_topk = true;
  for (LayerConfig& layer : model.layers) layer.moe = true;
  const bool slide = fields.has("sliding_window");
  read_sliding(
      fields, [slide](int64_t) { return slide; }, /*list_wins=*/false, model);
}

// Attention, norms and embedding of Gemma 3, whatever the feed-forward is.
void read_gemma_attention(const Fields& fields, ModelConfig& model) {
  model.activation = read_activation(fields, "hidden_activation");
  model.norm_plus_one = model.post_norms = model.qk_norm = model.scale_embedding = true;
  model.tied_head = fields.boolean("tie_word_embeddings", true);
  read_two_ropes(fields, model);
  read_sliding(fields, every_nth_is_full(sliding_pattern(fields)), /*list_wins=*/true, model);
}

void read_gemma3(const Fields& fields, ModelConfig& model) {
  fields.unsupported("attention_bias", false, "an attention bias in gemma3_text");
  fields.unsupported("use_bidirectional_attention", false, "bidirectional attention");
  model.intermediate_size = fields.integer("intermediate_size", 1);
  read_gemma_attention(fields, model);
  model.attention_scale = std::pow(fields.positive_number("query_pre_attn_scalar"), -0.5);
}

// Gemma-3-style attention with a fine-grained MoE in every layer (spec 1.10).
void read_house(const Fields& fields, ModelConfig& model) {
  const json known = preset_config("house");
  for (const auto& item : fields.object().items())
    if (!known.contains(item.key()) && item.key() != "architectures")
      refuse(item.key(), shown(item.value()), "a house config has no such field");
  read_gemma_attention(fields, model);
  if (fields.has("query_pre_attn_scalar"))
    model.attention_scale = std::pow(fields.positive_number("query_pre_attn_scalar"), -0.5);

  model.num_experts = fields.integer("num_experts", 1);
  read_routed_experts(fields, "moe_intermediate_size", model);
  read_expert_groups(fields, model);
  for (LayerConfig& layer : model.layers) layer.moe = true;
  model.shared_expert_size = fields.integer("shared_expert_intermediate_size", 0, 0);
  model.normalize_topk = fields.boolean("norm_topk_prob", true);
  model.router_bias = fields.boolean("router_bias", true);
  const std::string score = fields.text("scoring_func", "sigmoid");
  if (score != "sigmoid" && score != "softmax")
    refuse("scoring_func", score, "must be sigmoid or softmax");
  model.router_score = score == "sigmoid" ? RouterScore::kSigmoid : RouterScore::kSoftmax;
}

using FamilyReader = void (*)(const Fields&, ModelConfig&);

const std::map<std::string, FamilyReader>& families() {
  static const std::map<std::string, FamilyReader> table = {{"gemma3_text", read_gemma3},
                                                            {"house", read_house},
                                                            {"mixtral", read_mixtral},
                                                            {"qwen2_moe", read_qwen2_moe},
                                                            {"qwen3_moe", read_qwen3_moe}};
  return table;
}

std::string known_types() {
  std::string list;
  for (const auto& [name, reader] : families()) list += (list.empty() ? "" : ", ") + name;
  return list;
}

// --- sizes
// ----------------------------------------------------------------------------------------

// Number is int64_t for the exact count, double to find out whether that would overflow.
template <typename Number>
Number count_parameters(const ModelConfig& m, bool active) {
  const Number h = m.hidden_size;
  const Number q = Number(m.num_heads) * Number(m.head_dim);
  const Number kv = Number(m.num_kv_heads) * Number(m.head_dim);
  Number attention = h * (q + 2 * kv) + q * h;
  if (m.qkv_bias) attention += q + 2 * kv;
  if (m.qk_norm) attention += 2 * Number(m.head_dim);
  const Number norms = (m.post_norms ? 4 : 2) * h;
  const Number dense = 3 * h * Number(m.intermediate_size);
  const Number experts = Number(active ? m.experts_per_token : m.num_experts);
  Number moe = Number(m.num_experts) * h + 3 * h * Number(m.expert_size) * experts;
  moe += 3 * h * Number(m.shared_expert_size);
  if (m.shared_expert_gate) moe += h;
  if (m.router_bias) moe += Number(m.num_experts);

  Number total = (m.tied_head ? 1 : 2) * Number(m.vocab_size) * h + h;
  for (const LayerConfig& layer : m.layers) total += attention + norms + (layer.moe ? moe : dense);
  return total;
}

// Mean number of keys that a query attends to.
double mean_keys(const ModelConfig& m, bool sliding, double seq_len) {
  const double window = static_cast<double>(m.sliding_window);
  if (!sliding || window >= seq_len) return (seq_len + 1) / 2;
  return window - window * (window - 1) / (2 * seq_len);
}

// --- presets
// --------------------------------------------------------------------------------------

// vocab_size 272: the byte tokenizer's 257 ids, padded to a multiple of 16.
json tiny_preset(const std::string& model_type) {
  return {{"model_type", model_type}, {"vocab_size", 272},
          {"hidden_size", 64},        {"num_hidden_layers", 2},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"head_dim", 16},           {"max_position_embeddings", 4096},
          {"rms_norm_eps", 1e-6},     {"initializer_range", 0.02},
          {"attention_dropout", 0.0}, {"rope_theta", 1e6},
          {"rope_scaling", nullptr},  {"sliding_window", nullptr},
          {"layer_types", nullptr},   {"tie_word_embeddings", false}};
}

void add_tiny_moe(json& config, const char* num_experts_field) {
  config.update({{"hidden_act", "silu"},
                 {num_experts_field, 8},
                 {"num_experts_per_tok", 2},
                 {"intermediate_size", 128},
                 {"router_aux_loss_coef", 1e-3}});
}

void add_tiny_qwen(json& config) {
  add_tiny_moe(config, "num_experts");
  config.update({{"moe_intermediate_size", 32},
                 {"norm_topk_prob", true},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", json::array()},
                 {"use_sliding_window", false},
                 {"max_window_layers", 2}});
}

void add_gemma_attention(json& config, int64_t window, int64_t pattern) {
  config.update({{"hidden_activation", "gelu_pytorch_tanh"},
                 {"rope_local_base_freq", 1e4},
                 {"sliding_window", window},
                 {"sliding_window_pattern", pattern},
                 {"tie_word_embeddings", true},
                 {"attn_logit_softcapping", nullptr},
                 {"final_logit_softcapping", nullptr},
                 {"query_pre_attn_scalar", config["head_dim"]}});
}

json house_preset() {
  json config = tiny_preset("house");
  config.update({{"hidden_size", 128}, {"num_hidden_layers", 4}, {"head_dim", 32}});
  add_gemma_attention(config, /*window=*/64, /*pattern=*/4);
  config.update({{"query_pre_attn_scalar", nullptr},  // null: head_dim
                 {"num_experts", 16},
                 {"num_experts_per_tok", 4},
                 {"n_group", 1},
                 {"topk_group", 1},
                 {"routed_scaling_factor", 1.0},
                 {"moe_intermediate_size", 96},
                 {"shared_expert_intermediate_size", 192},
                 {"norm_topk_prob", true},
                 {"scoring_func", "sigmoid"},
                 {"router_bias", true},
                 {"router_aux_loss_coef", 1e-3}});
  return config;
}

}  // namespace

ModelConfig parse_model_config(const json& config) {
  const Fields fields(config);
  ModelConfig model;
  model.model_type = fields.text("model_type");
  const auto family = families().find(model.model_type);
  if (family == families().end())
    refuse("model_type", model.model_type, "supported types are " + known_types());
  read_common(fields, model);
  family->second(fields, model);
  const double size = count_parameters<double>(model, false);
  if (size > kMaxParameters)
    refuse("config", fmt::format("{:.3g} parameters", size), "a model has at most 1e18");
  return model;
}

json preset_config(const std::string& preset) {
  if (preset == "house") return house_preset();
  json config = tiny_preset(preset);
  if (preset == "qwen3_moe") {
    add_tiny_qwen(config);
    config["attention_bias"] = false;
  } else if (preset == "qwen2_moe") {
    add_tiny_qwen(config);
    config.update(
        {{"shared_expert_intermediate_size", 64}, {"norm_topk_prob", false}, {"qkv_bias", true}});
  } else if (preset == "mixtral") {
    add_tiny_moe(config, "num_local_experts");
    config.update({{"rms_norm_eps", 1e-5}, {"router_jitter_noise", 0.0}});
  } else if (preset == "gemma3_text") {
    config["num_hidden_layers"] = 6;
    add_gemma_attention(config, /*window=*/32, /*pattern=*/6);
    config.update({{"intermediate_size", 192}, {"attention_bias", false}});
  } else {
    throw ConfigError(
        fmt::format("model.preset = {}: no such preset; known ones are {}", preset, known_types()));
  }
  return config;
}

int64_t num_parameters(const ModelConfig& model) { return count_parameters<int64_t>(model, false); }

int64_t num_active_parameters(const ModelConfig& model) {
  return count_parameters<int64_t>(model, true);
}

double flops_per_token(const ModelConfig& m, int64_t seq_len) {
  MANIPLE_INVARIANT(seq_len > 0, "seq_len {}", seq_len);
  const double h = m.hidden_size, q = static_cast<double>(m.num_heads * m.head_dim);
  const double kv = static_cast<double>(m.num_kv_heads * m.head_dim);
  const double dense = 6 * h * m.intermediate_size;
  double moe = 2 * h * m.num_experts + 6 * h * m.expert_size * m.experts_per_token;
  moe += 6 * h * m.shared_expert_size;
  if (m.shared_expert_gate) moe += 2 * h;

  double forward = 2 * h * m.vocab_size;
  for (const LayerConfig& layer : m.layers) {
    forward += 2 * h * (q + 2 * kv) + 2 * q * h + 4 * q * mean_keys(m, layer.sliding, seq_len);
    forward += layer.moe ? moe : dense;
  }
  return 3 * forward;
}

}  // namespace maniple

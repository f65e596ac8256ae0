// What a decoder is made of, whatever family it belongs to. Read from Hugging Face configs (both
// generations) or from the house preset by parse_model_config.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/glu.h"

namespace maniple {

enum class RouterScore { kSoftmax, kSigmoid };

struct RopeConfig {
  double theta = 1e4;
  double linear_factor = 1;  // frequencies are divided by it

  bool operator==(const RopeConfig&) const = default;
};

struct LayerConfig {
  bool sliding = false;  // attention over the last `sliding_window` keys, RoPE of rope_sliding
  bool moe = false;

  bool operator==(const LayerConfig&) const = default;
};

struct ModelConfig {
  std::string model_type;  // the hub's word, or "house"
  int64_t vocab_size = 0, hidden_size = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t intermediate_size = 0;  // width of dense layers
  int64_t max_position_embeddings = 0;
  std::vector<LayerConfig> layers;

  double rms_norm_eps = 1e-6;
  bool norm_plus_one = false;    // Gemma: multiply by (1 + w), in fp32, cast last
  bool post_norms = false;       // Gemma: norms after attention and feed-forward too
  bool qk_norm = false;          // RMSNorm over head_dim of q and k, before RoPE
  bool qkv_bias = false;
  double attention_scale = 0;    // multiplies q . k
  int64_t sliding_window = 0;    // keys, including the query's own; 0: none
  RopeConfig rope_full, rope_sliding;
  bool scale_embedding = false;  // Gemma: multiply by sqrt(hidden_size) in the compute type
  bool tied_head = false;
  Activation activation = Activation::kSilu;
  double initializer_range = 0.02;

  int64_t num_experts = 0, experts_per_token = 0;
  int64_t expert_size = 0;         // width of one routed expert
  int64_t shared_expert_size = 0;  // 0: none
  bool shared_expert_gate = false;  // sigmoid(w . x) before the shared expert
  int64_t expert_groups = 1;       // equal groups of experts, of which a token
  int64_t groups_per_token = 1;    // may use only so many
  bool normalize_topk = false;     // weights of the chosen experts sum to 1,
  double routed_scale = 1;         // or to this
  RouterScore router_score = RouterScore::kSoftmax;
  double router_aux_coef = 1e-3;   // the config's own value, in the config's own convention
  bool router_bias = false;        // a selection bias (aux-loss-free balancing) belongs to the model

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  bool operator==(const ModelConfig&) const = default;
};

// `config`: the contents of a config.json (transformers 4.x or 5.x field names), or a house config
// with model_type "house". Throws ConfigError naming the field for what is missing, of the wrong
// type, or not supported (soft-caps, YaRN, MLA, ...), never guesses. Unknown fields are ignored in
// Hugging Face configs and refused in house configs.
ModelConfig parse_model_config(const nlohmann::json& config);

// The config.json-like object of a preset: "house", or a hub model_type, whose defaults are small
// (a tiny model of that family). It holds every field that parse_model_config reads for that type in
// the 4.x form (null where unset), so an override of a field that is not in it is a typing error.
// Throws ConfigError for an unknown name and lists the known ones.
nlohmann::json preset_config(const std::string& preset);

// Exact number of parameters (the router's selection bias counts, spec 9.3); `active`: those that
// one token uses, embedding and head included (spec 1.13).
int64_t num_parameters(const ModelConfig& model);
int64_t num_active_parameters(const ModelConfig& model);

// Training FLOPs per token (3 x forward), spec/moe.md section 4, causal attention over seq_len.
double flops_per_token(const ModelConfig& model, int64_t seq_len);

}  // namespace maniple

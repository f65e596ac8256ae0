#include "core/config_table.h"

namespace maniple {

const std::vector<ModelField>& model_fields() {
  using enum FieldType;
  static const std::vector<ModelField> fields = {
      {{"model.vocab_size", at_least(1), "rows of the embedding"}, kInteger},
      {{"model.hidden_size", at_least(1), "width of the residual stream"}, kInteger},
      {{"model.num_hidden_layers", at_least(1), "decoder layers"}, kInteger},
      {{"model.num_attention_heads", at_least(1), "query heads"}, kInteger},
      {{"model.num_key_value_heads", at_least(1), "key and value heads"}, kInteger},
      {{"model.head_dim", at_least(1), "width of a head; null: hidden_size / heads"},
       kInteger,
       true},
      {{"model.intermediate_size", at_least(1), "width of a dense layer (Mixtral: of an expert)"},
       kInteger},
      {{"model.moe_intermediate_size", at_least(1), "width of a routed expert"}, kInteger},
      {{"model.num_experts", at_least(0), "routed experts per layer"}, kInteger},
      {{"model.num_local_experts", at_least(0), "num_experts in Mixtral's spelling"}, kInteger},
      {{"model.num_experts_per_tok", at_least(1), "routed experts per token"}, kInteger},
      {{"model.n_group", at_least(1), "equal groups of routed experts"}, kInteger},
      {{"model.topk_group", at_least(1), "groups that a token may use, those of the best two experts"},
       kInteger},
      {{"model.shared_expert_intermediate_size", at_least(0), "width of the shared expert"},
       kInteger},
      {{"model.norm_topk_prob", any_value(), "weights of the chosen experts sum to 1"}, kBool},
      {{"model.scoring_func", one_of({"softmax", "sigmoid"}), "scores of the router"}, kText},
      {{"model.router_bias", any_value(), "a selection bias belongs to the model"}, kBool},
      {{"model.router_aux_loss_coef", at_least(0), "balance loss; moe.aux_coef wins"}, kNumber},
      {{"model.router_jitter_noise", at_least(0), "noise on the router's input"}, kNumber},
      {{"model.routed_scaling_factor", at_least(0), "scale of the routed experts"}, kNumber},
      {{"model.output_router_logits", any_value(), "kept for exports"}, kBool},
      {{"model.decoder_sparse_step", at_least(1), "every n-th layer has experts"}, kInteger},
      {{"model.mlp_only_layers", at_least(0), "layers without experts"}, kIntegers},
      {{"model.rope_theta", above(0), "base of the rotary frequencies"}, kNumber},
      {{"model.rope_local_base_freq", above(0), "the base in sliding layers"}, kNumber},
      {{"model.rope_scaling", any_value(), "scaling of positions (transformers 4)"}, kObject, true},
      {{"model.rope_parameters", any_value(), "rotary settings (transformers 5)"}, kObject, true},
      {{"model.partial_rotary_factor", above(0), "rotated share of a head"}, kNumber},
      {{"model.sliding_window", at_least(1), "keys that a sliding layer sees; null: none"},
       kInteger,
       true},
      {{"model.sliding_window_pattern", at_least(1), "every n-th layer is full"}, kInteger},
      {{"model.use_sliding_window", any_value(), "whether any layer slides"}, kBool},
      {{"model.max_window_layers", at_least(0), "layers below it are full"}, kInteger},
      {{"model.layer_types",
        one_of({"full_attention", "sliding_attention"}, {"chunked_attention", "linear_attention"}),
        "attention of each layer"},
       kTexts,
       true},
      {{"model.query_pre_attn_scalar", above(0), "scores are divided by its root"}, kNumber, true},
      {{"model.attn_logit_softcapping", above(0), "soft cap of attention scores"}, kNumber, true},
      {{"model.final_logit_softcapping", above(0), "soft cap of the logits"}, kNumber, true},
      {{"model.attention_bias", any_value(), "biases in the attention projections"}, kBool},
      {{"model.attention_dropout", share(), "dropout of attention weights"}, kNumber},
      {{"model.qkv_bias", any_value(), "biases of q, k and v"}, kBool},
      {{"model.tie_word_embeddings", any_value(), "the head is the embedding"}, kBool},
      {{"model.rms_norm_eps", above(0), "term of the norms' denominator"}, kNumber},
      {{"model.initializer_range", at_least(0), "standard deviation of initial weights"}, kNumber},
      {{"model.hidden_act", non_empty(), "activation of the feed-forward layers"}, kText},
      {{"model.hidden_activation", non_empty(), "hidden_act in Gemma's spelling"}, kText},
      {{"model.max_position_embeddings", at_least(1), "longest sequence"}, kInteger},
  };
  return fields;
}

const std::vector<std::string>& later_keys() {
  static const std::vector<std::string> keys = {"parallel.cp",          "parallel.pp",
                                                "quant.learned_scales", "quant.asymmetric",
                                                "quant.activations",    "quant.kv_cache"};
  return keys;
}

const std::vector<std::string>& later_groups() {
  static const std::vector<std::string> groups = {};
  return groups;
}

}  // namespace maniple

#include "model/decoder.h"

#include <cmath>

namespace maniple {

Decoder::Decoder(const ModelConfig& model, ParameterStore& store, const FeedForwardFactory& moe)
    : model_(model), store_(store) {
  const int64_t tp = store.mesh().shape().tp, index = store.mesh().tp_index();
  const int64_t D = model.hidden_size, V = model.vocab_size;
  const Init normal{Init::kNormal, model.initializer_range};
  const Init one{Init::kConstant, model.norm_plus_one ? 0.0 : 1.0};
  auto add_norm = [&](const std::string& name) {
    return &store.add(name, {D}, GradGroup::kReplicated, {}, one);
  };
  embedding_ = &store.add("model.embed_tokens.weight", {V, D}, GradGroup::kSharded,
                          {{0, index, tp}}, normal);
  for (int64_t i = 0; i < model.num_layers(); ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const LayerConfig& config = model.layers[i];
    Layer layer{};
    layer.before_attention = add_norm(prefix + "input_layernorm.weight");
    layer.attention = std::make_unique<Attention>(model, prefix + "self_attn.", config.sliding, store);
    // Llama-type models call the norm before the feed-forward post_attention_layernorm.
    Parameter* post_attention = add_norm(prefix + "post_attention_layernorm.weight");
    if (model.post_norms) {
      layer.after_attention = post_attention;
      layer.before_feed_forward = add_norm(prefix + "pre_feedforward_layernorm.weight");
      layer.after_feed_forward = add_norm(prefix + "post_feedforward_layernorm.weight");
    } else {
      layer.before_feed_forward = post_attention;
    }
    layer.feed_forward =
        config.moe ? moe(i, prefix + "mlp.", store)
                   : std::make_unique<DenseFeedForward>(model, prefix + "mlp.",
                                                        model.intermediate_size, store);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = add_norm("model.norm.weight");
  head_ = model.tied_head ? embedding_
                          : &store.add("lm_head.weight", {V, D}, GradGroup::kSharded,
                                       {{0, index, tp}}, normal);
}

at::Tensor Decoder::norm(const at::Tensor& x, Parameter& weight) const {
  return rms_norm(x, weight, model_.rms_norm_eps, model_.norm_plus_one);
}

at::Tensor Decoder::forward(const at::Tensor& ids, const at::Tensor& position,
                            const at::Tensor& document, std::vector<at::Tensor>* hidden) {
  const auto type = compute_type(store_.precision());
  const AttentionInputs inputs = make_attention_inputs(model_, position, document, type);
  at::Tensor x = embed(ids, *embedding_, store_.mesh().tp());
  if (model_.scale_embedding)  // the factor is rounded to the compute type first
    x = x * at::scalar_tensor(std::sqrt(static_cast<double>(model_.hidden_size)), x.options());
  for (Layer& layer : layers_) {
    if (hidden) hidden->push_back(x.detach());
    at::Tensor y = layer.attention->forward(norm(x, *layer.before_attention), inputs);
    if (layer.after_attention) y = norm(y, *layer.after_attention);
    x = x + y;
    y = layer.feed_forward->forward(norm(x, *layer.before_feed_forward));
    if (layer.after_feed_forward) y = norm(y, *layer.after_feed_forward);
    x = x + y;
  }
  x = norm(x, *final_norm_);
  if (hidden) hidden->push_back(x.detach());
  return x;
}

}  // namespace maniple

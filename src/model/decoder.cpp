#include "model/decoder.h"

#include <cmath>

#include "model/recompute.h"

namespace maniple {
namespace {

// The identity; backward, which comes after that of everything computed from x, calls on_backward.
struct Milestone : torch::autograd::Function<Milestone> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            int64_t decoder, int64_t layer) {
    ctx->saved_data["decoder"] = decoder;
    ctx->saved_data["layer"] = layer;
    return x.view_as(x);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               const torch::autograd::tensor_list& grads) {
    const auto& decoder = *reinterpret_cast<Decoder*>(ctx->saved_data["decoder"].toInt());
    if (decoder.on_backward) decoder.on_backward(ctx->saved_data["layer"].toInt());
    return {grads[0], {}, {}};
  }
};

}  // namespace

Decoder::Decoder(const ModelConfig& model, ParameterStore& store, const FeedForwardFactory& moe,
                 bool recompute)
    : model_(model), store_(store), recompute_(recompute) {
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
    for (int g = 0; g < kNumGradGroups; ++g)
      layer.begin[g] = store.group(static_cast<GradGroup>(g)).used;
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

at::Tensor Decoder::forward(Layer& layer, const at::Tensor& x_in, const AttentionInputs& inputs,
                            LayerPass& pass, KvCache* cache) const {
  const at::Tensor before = norm(x_in, *layer.before_attention);
  at::Tensor y = cache ? layer.attention->forward(before, inputs, *cache)
                       : layer.attention->forward(before, inputs);
  if (layer.after_attention) y = norm(y, *layer.after_attention);
  const at::Tensor x = x_in + y;
  y = layer.feed_forward->forward(norm(x, *layer.before_feed_forward), pass);
  if (layer.after_feed_forward) y = norm(y, *layer.after_feed_forward);
  return x + y;
}

at::Tensor Decoder::embedded(const at::Tensor& ids) const {
  const at::Tensor x = embed(ids, *embedding_, store_.mesh().tp());
  if (!model_.scale_embedding) return x;  // the factor is rounded to the compute type first
  return x * at::scalar_tensor(std::sqrt(static_cast<double>(model_.hidden_size)), x.options());
}

void Decoder::note_hidden(int64_t layer, const at::Tensor& x) {
  if (on_hidden) on_hidden(x);
  store_.mesh().trail().reach_layer(layer, x);
  if (!at::GradMode::is_enabled()) return;
  const at::NoGradGuard no_grad;
  norms_.push_back(at::linalg_vector_norm(x, 2, {-1}, false, accumulate_type(store_.precision())));
}

std::vector<double> Decoder::hidden_squares() const {
  const at::Tensor norms = at::stack(norms_).flatten(1).to(at::kCPU, at::kDouble).contiguous();
  std::vector<double> squares;
  for (int64_t l = 0; l < norms.size(0); ++l) {
    const double* norm = norms.const_data_ptr<double>() + l * norms.size(1);
    double sum = 0;
    for (int64_t t = 0; t < norms.size(1); ++t) sum += norm[t] * norm[t];
    squares.push_back(sum / static_cast<double>(model_.hidden_size));
  }
  return squares;
}

at::Tensor Decoder::forward(const at::Tensor& ids, const at::Tensor& position,
                            const at::Tensor& document, std::vector<at::Tensor>* hidden) {
  const auto type = compute_type(store_.precision());
  const AttentionInputs inputs = make_attention_inputs(model_, position, document, type);
  at::Tensor x = embedded(ids);
  losses_.clear();
  norms_.clear();
  for (int64_t l = 0; l < model_.num_layers(); ++l) {
    Layer& layer = layers_[l];
    note_hidden(l, x);
    if (hidden) hidden->push_back(x.detach());
    if (on_backward && at::GradMode::is_enabled())
      x = Milestone::apply(x, reinterpret_cast<int64_t>(this), l);
    // The inputs are shared by all layers: copying them copies references.
    auto body = [this, &layer, inputs](const std::vector<at::Tensor>& in, bool again) {
      LayerPass pass{.again = again, .loss = {}};
      std::vector<at::Tensor> out = {forward(layer, in[0], inputs, pass)};
      if (pass.loss.defined()) out.push_back(pass.loss);
      return out;
    };
    const auto out = recompute_ ? recompute({x}, body) : body({x}, false);
    x = out[0];
    if (out.size() > 1) losses_.push_back(out[1]);
  }
  note_hidden(model_.num_layers(), x);
  x = norm(x, *final_norm_);
  if (hidden) hidden->push_back(x.detach());
  return x;
}

at::Tensor Decoder::forward(const at::Tensor& ids, DecoderCache& cache) {
  const at::NoGradGuard no_grad;
  cache.layers.resize(layers_.size());
  const at::Tensor position =
      (at::arange(ids.size(1), ids.options()) + cache.num_tokens).expand_as(ids).contiguous();
  const AttentionInputs inputs = make_attention_inputs(model_, position, at::zeros_like(ids),
                                                       compute_type(store_.precision()));
  at::Tensor x = embedded(ids);
  for (size_t l = 0; l < layers_.size(); ++l) {
    LayerPass pass;
    x = forward(layers_[l], x, inputs, pass, &cache.layers[l]);
  }
  cache.num_tokens += ids.size(1);
  return norm(x, *final_norm_);
}

}  // namespace maniple

#include "model/attention.h"

#include "core/errors.h"

namespace maniple {
namespace {

// cos and sin of position x frequency; computed in fp64 and rounded once to `type`.
std::pair<at::Tensor, at::Tensor> rope_tables(const RopeConfig& rope, int64_t head_dim,
                                              const at::Tensor& position, at::ScalarType type) {
  const at::Tensor i = at::arange(0, head_dim, 2, at::kDouble);
  const at::Tensor frequency =
      at::pow(at::scalar_tensor(rope.theta, at::kDouble), i / -static_cast<double>(head_dim)) /
      rope.linear_factor;
  const at::Tensor angle =
      (position.to(at::kDouble).unsqueeze(-1) * frequency.to(position.device())).unsqueeze(1);
  return {angle.cos().to(type), angle.sin().to(type)};
}

// Pairs are (i, i + d/2).
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

}  // namespace

AttentionInputs make_attention_inputs(const ModelConfig& model, const at::Tensor& position,
                                      const at::Tensor& document, at::ScalarType type) {
  AttentionInputs in;
  std::tie(in.cos_full, in.sin_full) = rope_tables(model.rope_full, model.head_dim, position, type);
  std::tie(in.cos_sliding, in.sin_sliding) =
      rope_tables(model.rope_sliding, model.head_dim, position, type);
  const int64_t S = position.size(1);
  const at::Tensor index = at::arange(S, position.options());
  const at::Tensor distance = index.unsqueeze(1) - index.unsqueeze(0);  // query - key
  const at::Tensor same = document.unsqueeze(2).eq(document.unsqueeze(1)).unsqueeze(1);
  const bool packed = document.ne(document.narrow(1, 0, 1)).any().item<bool>();
  if (packed) in.mask_full = same.logical_and(distance >= 0);
  if (model.sliding_window > 0 && model.sliding_window < S)
    in.mask_sliding =
        same.logical_and(distance >= 0).logical_and(distance < model.sliding_window);
  else
    in.mask_sliding = in.mask_full;
  return in;
}

Attention::Attention(const ModelConfig& model, const std::string& prefix, bool sliding,
                     ParameterStore& store)
    : model_(model), sliding_(sliding), tp_(store.mesh().tp()) {
  const int64_t tp = store.mesh().shape().tp, index = store.mesh().tp_index();
  MANIPLE_INVARIANT(model.num_heads % tp == 0 && model.num_kv_heads % tp == 0, "tp {}", tp);
  const Init normal{Init::kNormal, model.initializer_range}, zero{Init::kConstant, 0};
  const int64_t D = model.hidden_size, d = model.head_dim;
  auto column = [&](const char* name, int64_t heads) {
    return &store.add(prefix + name + "_proj.weight", {heads * d, D}, GradGroup::kSharded,
                      {{0, index, tp}}, normal);
  };
  auto bias = [&](const char* name, int64_t heads) {
    return &store.add(prefix + name + "_proj.bias", {heads * d}, GradGroup::kSharded,
                      {{0, index, tp}}, zero);
  };
  q_ = column("q", model.num_heads);
  k_ = column("k", model.num_kv_heads);
  v_ = column("v", model.num_kv_heads);
  o_ = &store.add(prefix + "o_proj.weight", {D, model.num_heads * d}, GradGroup::kSharded,
                  {{1, index, tp}}, normal);
  if (model.qkv_bias) {
    q_bias_ = bias("q", model.num_heads);
    k_bias_ = bias("k", model.num_kv_heads);
    v_bias_ = bias("v", model.num_kv_heads);
  }
  if (model.qk_norm) {
    const Init one{Init::kConstant, model.norm_plus_one ? 0.0 : 1.0};
    // Each tp rank sees its own heads only: the gradient is partial.
    q_norm_ = &store.add(prefix + "q_norm.weight", {d}, GradGroup::kPartial, {}, one);
    k_norm_ = &store.add(prefix + "k_norm.weight", {d}, GradGroup::kPartial, {}, one);
  }
}

at::Tensor Attention::forward(const at::Tensor& x_in, const AttentionInputs& in) {
  const int64_t B = x_in.size(0), S = x_in.size(1), d = model_.head_dim;
  const at::Tensor x = enter_tensor_parallel(x_in, tp_);
  auto heads = [&](Parameter& weight, Parameter* bias, Parameter* norm) {
    at::Tensor y = linear(x, weight, bias).view({B, S, -1, d});
    if (norm) y = rms_norm(y, *norm, model_.rms_norm_eps, model_.norm_plus_one);
    return y.transpose(1, 2);  // [B, H, S, d]
  };
  const at::Tensor& cos = sliding_ ? in.cos_sliding : in.cos_full;
  const at::Tensor& sin = sliding_ ? in.sin_sliding : in.sin_full;
  const at::Tensor q = rotate(heads(*q_, q_bias_, q_norm_), cos, sin);
  at::Tensor k = rotate(heads(*k_, k_bias_, k_norm_), cos, sin);
  at::Tensor v = heads(*v_, v_bias_, nullptr);
  const int64_t repeat = q.size(1) / k.size(1);
  if (repeat > 1) {
    auto expand = [&](const at::Tensor& t) {
      return t.unsqueeze(2).expand({B, t.size(1), repeat, S, d}).reshape({B, q.size(1), S, d});
    };
    k = expand(k);
    v = expand(v);
  }
  const at::Tensor& mask = sliding_ ? in.mask_sliding : in.mask_full;
  const at::Tensor y = at::scaled_dot_product_attention(
      q, k, v, mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt, 0.0,
      /*is_causal=*/!mask.defined(), model_.attention_scale);
  return leave_tensor_parallel(linear(y.transpose(1, 2).reshape({B, S, -1}), *o_), tp_);
}

}  // namespace maniple

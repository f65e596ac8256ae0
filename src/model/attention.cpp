#include "model/attention.h"

#include "core/errors.h"
#include "kernels/attention.h"
#include "kernels/rope.h"

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
      position.to(at::kDouble).unsqueeze(-1) * frequency.to(position.device());
  return {angle.cos().to(type), angle.sin().to(type)};
}

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

struct Rotate : torch::autograd::Function<Rotate> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return rotate(x, cos, sin, false);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotate(grads[0], saved[0], saved[1], true), {}, {}};
  }
};

struct Attend : torch::autograd::Function<Attend> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& first, double scale) {
    const AttentionResult out = attention_forward(q, k, v, first, scale);
    ctx->save_for_backward({q, k, v, out.y, out.lse, first});
    ctx->saved_data["scale"] = scale;
    return out.y;
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto s = ctx->get_saved_variables();
    const AttentionGradients d = attention_backward(grads[0].contiguous(), s[0], s[1], s[2], {s[3], s[4]},
                                                    s[5], ctx->saved_data["scale"].toDouble());
    return {d.q, d.k, d.v, {}, {}};
  }
};

}  // namespace

AttentionInputs make_attention_inputs(const ModelConfig& model, const at::Tensor& position,
                                      const at::Tensor& document, at::ScalarType type) {
  AttentionInputs in;
  std::tie(in.cos_full, in.sin_full) = rope_tables(model.rope_full, model.head_dim, position, type);
  std::tie(in.cos_sliding, in.sin_sliding) =
      rope_tables(model.rope_sliding, model.head_dim, position, type);
  const int64_t B = document.size(0), S = document.size(1), window = model.sliding_window;
  const at::Tensor host = document.cpu();
  in.first_full = at::empty({B, S}, at::TensorOptions(at::kInt));
  in.first_sliding = at::empty({B, S}, at::TensorOptions(at::kInt));
  const auto id = host.accessor<int64_t, 2>();
  auto full = in.first_full.accessor<int32_t, 2>(), sliding = in.first_sliding.accessor<int32_t, 2>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0, start = 0; i < S; ++i) {
      if (i && id[b][i] != id[b][i - 1]) start = i;
      full[b][i] = static_cast<int32_t>(start);
      sliding[b][i] = static_cast<int32_t>(window > 0 ? std::max(start, i - window + 1) : start);
    }
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

at::Tensor Attention::heads(const at::Tensor& x, Parameter& weight, Parameter* bias, Parameter* norm) const {
  const at::Tensor y = linear(x, weight, bias).view({x.size(0), x.size(1), -1, model_.head_dim});
  return norm ? rms_norm(y, *norm, model_.rms_norm_eps, model_.norm_plus_one) : y;
}

Attention::Heads Attention::project(const at::Tensor& x, const AttentionInputs& in) const {
  const at::Tensor& cos = sliding_ ? in.cos_sliding : in.cos_full;
  const at::Tensor& sin = sliding_ ? in.sin_sliding : in.sin_full;
  return {Rotate::apply(heads(x, *q_, q_bias_, q_norm_), cos, sin),
          Rotate::apply(heads(x, *k_, k_bias_, k_norm_), cos, sin), heads(x, *v_, v_bias_, nullptr)};
}

at::Tensor Attention::forward(const at::Tensor& x_in, const AttentionInputs& in) {
  const Heads h = project(enter_tensor_parallel(x_in, tp_), in);
  const at::Tensor y = Attend::apply(h.q, h.k, h.v, sliding_ ? in.first_sliding : in.first_full,
                                     model_.attention_scale);
  return leave_tensor_parallel(linear(y.view({y.size(0), y.size(1), -1}), *o_), tp_);
}

}  // namespace maniple

// Attention of new tokens over those in a cache: inference only, so plain ATen throughout.
#include "model/attention.h"

namespace maniple {

at::Tensor Attention::forward(const at::Tensor& x, const AttentionInputs& in, KvCache& cache) {
  const int64_t B = x.size(0), n = x.size(1), d = model_.head_dim;
  const Heads h = project(x, in);
  const at::Tensor q = h.q.transpose(1, 2);  // [B, H, n, d]
  const int64_t window = sliding_ ? model_.sliding_window : 0;  // 0: none
  const auto [k, v] =
      cache.append(h.k.transpose(1, 2), h.v.transpose(1, 2), window > 0 ? window - 1 : -1);
  const int64_t H = q.size(1), kv = k.size(1), S = k.size(2), repeat = H / kv;
  at::Tensor y;
  if (n == 1) {
    // The cache holds what this token sees and nothing else; heads that share keys become rows.
    y = at::scaled_dot_product_attention(q.reshape({B, kv, repeat, d}), k, v, std::nullopt, 0.0,
                                         /*is_causal=*/false, model_.attention_scale)
            .reshape({B, H, 1, d});
  } else {
    auto expand = [&](const at::Tensor& t) {
      return t.unsqueeze(2).expand({B, kv, repeat, S, d}).reshape({B, H, S, d});
    };
    const auto index = at::TensorOptions(at::kLong).device(x.device());
    const at::Tensor distance =  // query - key
        at::arange(S - n, S, index).unsqueeze(1) - at::arange(S, index).unsqueeze(0);
    at::Tensor mask = distance >= 0;
    if (window > 0) mask = mask.logical_and(distance < window);
    y = at::scaled_dot_product_attention(q, expand(k), expand(v), mask, 0.0, /*is_causal=*/false,
                                         model_.attention_scale);
  }
  return leave_tensor_parallel(linear(y.transpose(1, 2).reshape({B, n, -1}), *o_), tp_);
}

}  // namespace maniple

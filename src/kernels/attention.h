// Causal attention with a window and document borders, forward and backward, in blocks that never
// form whole score matrices (the scheme of FlashAttention, arXiv 2205.14135 and 2307.08691) and skip
// the blocks that nobody may see. fp32 or bf16 on the microkernel, softmax in fp32; other types and
// devices: the ATen reference. The order of every sum is fixed, so threads do not change bits.
// Shape letters: B rows, S positions, H query heads, G key-value heads (H a multiple of G), d head dim.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

struct AttentionResult {
  at::Tensor y;    // [B, S, H, d], as q
  at::Tensor lse;  // [B, H, S], accumulation type: log of the sum of exp of a query's scores
};
// q [B, S, H, d], k and v [B, S, G, d]. Query i attends keys first[b, i] .. i; first (int32 [B, S], CPU)
// does not decrease in i, which windows and documents that follow each other give.
AttentionResult attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& first, double scale);

struct AttentionGradients {
  at::Tensor q, k, v;
};
AttentionGradients attention_backward(const at::Tensor& dy, const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& v, const AttentionResult& forward,
                                      const at::Tensor& first, double scale);

}  // namespace maniple

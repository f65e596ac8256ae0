// Moves and sums of whole rows, as dispatch to experts and back needs them. Any type and device;
// one pass on CPU. Shape letters: T tokens, N slots, K slots per token, D width.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

// y[n] = x[index[n] / divisor]; index int64 [N].
at::Tensor gather_rows(const at::Tensor& x_TD, const at::Tensor& index_N, int64_t divisor = 1);

// y[t] = sum over k of x[index[t K + k]], in order of k, fp32 sums; index int64 [T K].
at::Tensor gather_sum_rows(const at::Tensor& x_ND, const at::Tensor& index_TK, int64_t K);

}  // namespace maniple

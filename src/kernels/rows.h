// Moves and sums of whole rows, as dispatch to experts and back needs them. Any type and device;
// one pass on CPU. Shape letters: T tokens, N slots, K slots per token, D width.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

// y[n] = x[index[n] / divisor]; index int64 [N].
at::Tensor gather_rows(const at::Tensor& x_TD, const at::Tensor& index_N, int64_t divisor = 1);

// y[t] = sum over k of x[index[t K + k]], in order of k, fp32 sums; index int64 [T K].
at::Tensor gather_sum_rows(const at::Tensor& x_ND, const at::Tensor& index_TK, int64_t K);

// sums[r] += the sum of the rows x[t] with index[t] = r, those in order of t. index int64 [T]; the
// rows of an index of sums.size(0) are left out. x and sums: fp32 or fp64, contiguous.
void add_rows(const at::Tensor& x_TD, const at::Tensor& index_T, const at::Tensor& sums_RD);

}  // namespace maniple

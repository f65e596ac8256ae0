// The row-wise pieces of cross-entropy over a part of the vocabulary. Logits z [n, V] in the
// accumulation type (fp32, fp64); each function reads them once from cache. column [n], int64: the
// target's column, or -1 when this rank does not hold it.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

struct SoftmaxStats {
  at::Tensor top;     // [n]: max of the row
  at::Tensor total;   // [n]: sum of exp(z - top)
  at::Tensor chosen;  // [n]: z of the target; 0 without one
};
SoftmaxStats softmax_stats(const at::Tensor& z, const at::Tensor& column);

// exp(z - top) factor, less `target_factor` (0-dim number) at the target's column; in type `type`.
// A row with factor 0 and column -1 gives zeros.
at::Tensor softmax_gradient(const at::Tensor& z, const at::Tensor& top, const at::Tensor& factor,
                            const at::Tensor& column, double target_factor, at::ScalarType type);

}  // namespace maniple

// Rotary position embedding (Su et al., arXiv 2104.09864) of pairs (i, i + d/2).
// Shape letters: B rows, S positions, H heads, d head dim.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

// x [B, S, H, d] rotated by the angles whose cos and sin are [B, S, d/2] (type of x); inverse: by
// their negatives, which is also the backward. fp32 arithmetic, one rounding.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse);

}  // namespace maniple

// RMSNorm over the last dim, forward and backward, each one pass (Zhang and Sennrich, arXiv
// 1910.07467). R rows, D width; x, y fp32 or bf16, arithmetic fp32. Other types and devices: the ATen
// reference beside it.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

struct RmsNormResult {
  at::Tensor y;     // as x
  at::Tensor rstd;  // [R], accumulation type: 1 / sqrt(mean(x^2) + eps)
};
// x [R, D] contiguous, w [D]. plus_one: y = cast(x rstd (1 + w)), else cast(w) cast(x rstd).
RmsNormResult rms_norm_forward(const at::Tensor& x_RD, const at::Tensor& w_D, double eps,
                               bool plus_one);

// Returns dx [R, D] in the type of x and adds the weight's gradient to dw [D] (accumulation type),
// rows summed in fixed groups.
at::Tensor rms_norm_backward(const at::Tensor& dy_RD, const at::Tensor& x_RD,
                             const at::Tensor& rstd_R, const at::Tensor& w_D, bool plus_one,
                             at::Tensor& dw_D);

}  // namespace maniple

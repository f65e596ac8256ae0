// What the element-wise kernels of this folder run on; the rest takes the ATen reference.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

inline bool runs_fused(const at::Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

}  // namespace maniple

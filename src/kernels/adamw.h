// One AdamW step (decoupled decay) over a run of elements: reads the gradient, updates master, m and
// v in place and writes the rounded working copy, in one pass. Element-wise, so threads and order do
// not matter. Loshchilov and Hutter, arXiv 1711.05101.
#pragma once

#include <cstdint>

namespace maniple {

struct AdamwStep {
  double lr, beta1, beta2, eps, weight_decay;
  double correction1, correction2;  // 1 - beta^t
  double gradient_factor;           // clipping
};

// T: float or double. `value` is the working copy in T, or bf16 bits when value_is_bf16.
template <typename T>
void adamw(const AdamwStep& step, int64_t n, const T* gradient, T* master, T* m, T* v, void* value,
           bool value_is_bf16);

extern template void adamw<float>(const AdamwStep&, int64_t, const float*, float*, float*, float*,
                                  void*, bool);
extern template void adamw<double>(const AdamwStep&, int64_t, const double*, double*, double*,
                                   double*, void*, bool);

}  // namespace maniple

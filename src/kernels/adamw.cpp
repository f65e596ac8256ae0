#include "kernels/adamw.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace maniple {
namespace {

uint16_t to_bf16(float x) {  // round to nearest even; NaN stays NaN
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

template <typename T>
void adamw(const AdamwStep& s, int64_t n, const T* gradient, T* master, T* m, T* v, void* value,
           bool value_is_bf16) {
  const T keep = static_cast<T>(1 - s.lr * s.weight_decay);
  const T b1 = static_cast<T>(s.beta1), b2 = static_cast<T>(s.beta2);
  const T a1 = static_cast<T>(1 - s.beta1), a2 = static_cast<T>(1 - s.beta2);
  const T rate = static_cast<T>(s.lr / s.correction1);
  const T root = static_cast<T>(1 / std::sqrt(s.correction2));
  const T eps = static_cast<T>(s.eps), factor = static_cast<T>(s.gradient_factor);
  for (int64_t i = 0; i < n; ++i) {
    const T g = gradient[i] * factor;
    m[i] = b1 * m[i] + a1 * g;
    v[i] = b2 * v[i] + a2 * (g * g);
    master[i] = master[i] * keep - rate * m[i] / (std::sqrt(v[i]) * root + eps);
  }
  if (value_is_bf16) {
    auto* out = static_cast<uint16_t*>(value);
    for (int64_t i = 0; i < n; ++i) out[i] = to_bf16(static_cast<float>(master[i]));
  } else {
    std::memcpy(value, master, n * sizeof(T));
  }
}

template void adamw<float>(const AdamwStep&, int64_t, const float*, float*, float*, float*, void*,
                           bool);
template void adamw<double>(const AdamwStep&, int64_t, const double*, double*, double*, double*,
                            void*, bool);

}  // namespace maniple

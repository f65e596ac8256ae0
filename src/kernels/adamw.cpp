#include "kernels/adamw.h"

#include <algorithm>

#define MANIPLE_BODIES "kernels/adamw_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {

template <typename T>
void adamw(const AdamwStep& step, int64_t n, const T* gradient, T* master, T* m, T* v, void* value,
           bool value_is_bf16) {
  constexpr int64_t kChunk = 4096;  // stays in L1 between the update and the rounding
  with_isa([&](auto bodies) {
    for (int64_t i = 0; i < n; i += kChunk) {
      const int64_t count = std::min(kChunk, n - i);
      bodies.template update<T>(step, count, gradient + i, master + i, m + i, v + i);
      if (value_is_bf16)
        bodies.template round_to_bf16<T>(master + i, static_cast<bf16_t*>(value) + i, count);
      else
        std::memcpy(static_cast<T*>(value) + i, master + i, count * sizeof(T));
    }
  });
}

template void adamw<float>(const AdamwStep&, int64_t, const float*, float*, float*, float*, void*,
                           bool);
template void adamw<double>(const AdamwStep&, int64_t, const double*, double*, double*, double*,
                            void*, bool);

}  // namespace maniple

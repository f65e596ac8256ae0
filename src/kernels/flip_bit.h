// An error of memory, made on purpose.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

// Flips bit `bit` (from the lowest of an element, modulo its width) of row-major element `element`
// (modulo their number).
inline void flip_bit(const at::Tensor& t, int64_t element, int bit) {
  if (!t.is_cpu()) {
    const at::Tensor host = t.cpu();
    flip_bit(host, element, bit);
    t.copy_(host);
    return;
  }
  int64_t index = element % t.numel(), offset = 0;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    offset += index % t.size(d) * t.stride(d);
    index /= t.size(d);
  }
  const auto size = static_cast<int64_t>(t.element_size());
  const int64_t place = bit % (8 * size);
  static_cast<uint8_t*>(t.data_ptr())[offset * size + place / 8] ^=
      static_cast<uint8_t>(1 << (place % 8));
}

}  // namespace maniple

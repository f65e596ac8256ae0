// An error of memory, made on purpose.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

// Flips bit `bit` (from the lowest of an element, modulo its width) of flat element `element`
// (modulo their number) of a contiguous tensor of the host.
inline void flip_bit(const at::Tensor& t, int64_t element, int bit) {
  const auto size = static_cast<int64_t>(t.element_size());
  const int64_t place = bit % (8 * size), index = element % t.numel();
  static_cast<uint8_t*>(t.data_ptr())[index * size + place / 8] ^=
      static_cast<uint8_t>(1 << (place % 8));
}

}  // namespace maniple

// bfloat16 as its 16 bits.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/isa.h"

namespace maniple {

using bf16_t = uint16_t;

MANIPLE_INLINE float to_float(bf16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}
MANIPLE_INLINE float to_float(float x) { return x; }

// Round to nearest even; NaN stays NaN.
MANIPLE_INLINE bf16_t to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return static_cast<bf16_t>((x != x ? bits | 0x400000 : rounded) >> 16);
}

// To the storage type T.
template <typename T>
MANIPLE_INLINE T from_float(float x) {
  if constexpr (sizeof(T) == 2)
    return to_bf16(x);
  else
    return x;
}

}  // namespace maniple

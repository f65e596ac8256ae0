// The arithmetic of the grids on one group of fp32 weights. Loops are written so that a compiler
// vectorises them: magnitudes compare as integers, and rounding half to even is an addition.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>

#include "quant/grid.h"

namespace maniple::grid_rows {

// Rounds |x| < 2^22 to the nearest integer, half to even.
inline float round_even(float x) {
  constexpr float kMagic = 0x1.8p23f;
  return (x + kMagic) - kMagic;
}

inline float stored_as(at::ScalarType type, float scale) {
  return type == at::ScalarType::BFloat16 ? static_cast<float>(c10::BFloat16(scale)) : scale;
}

inline float largest_magnitude(const float* w, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(w[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return std::bit_cast<float>(largest);
}

// Whether the rounded value was in range, in place of the value itself.
struct NoMask {
  void operator()(int64_t, bool) const {}
};
struct Mask {
  bool* inside;
  void operator()(int64_t i, bool value) const { inside[i] = value; }
};

// w[0, n) -> q (as floats) and the stored scale.
template <typename Note>
float quantize_int4(const Grid& grid, const float* w, int64_t n, float* q, const Note& note) {
  const float steps = grid.kind == GridKind::kInt4Channel ? 7 : 7.5f;  // from 0 to the largest
  const float s = stored_as(grid.model_type, largest_magnitude(w, n) / steps);
  if (s == 0) {
    for (int64_t i = 0; i < n; ++i) q[i] = 0, note(i, true);
    return 0;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float rounded = round_even(w[i] / s);
    q[i] = rounded < -8 ? -8 : rounded > 7 ? 7 : rounded;
    note(i, rounded == q[i]);
  }
  return s;
}

template <typename Note>
float quantize_q4_0(const float* w, int64_t n, float* q, const Note& note) {
  const float a = largest_magnitude(w, n);
  float m = 0;
  for (int64_t i = n - 1; i >= 0; --i) m = w[i] == a || w[i] == -a ? w[i] : m;
  const float d = m / -8;
  float inverse = 1 / d;
  if (!(inverse < 0x1p127f && inverse > -0x1p127f)) inverse = 0;  // of zero, or nearly
  for (int64_t i = 0; i < n; ++i) {
    const auto code = static_cast<float>(static_cast<int32_t>(w[i] * inverse + 8.5f));
    q[i] = (code > 15 ? 15 : code) - 8;
    note(i, code <= 15);
  }
  return static_cast<float>(c10::Half(d));
}

// Any grid of integers.
template <typename Note>
float quantize_group(const Grid& grid, const float* w, int64_t n, float* q, const Note& note) {
  if (grid.kind == GridKind::kQ4_0) return quantize_q4_0(w, n, q, note);
  return quantize_int4(grid, w, n, q, note);
}

// The nearest value of switched FP8 of a scaled weight, |x| <= 1.875: three bits of mantissa from
// 1/128 on, two below, nothing between 0 and 1.25 * 2^-23.
inline float round_sfp8(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) & 0x7fffffffu;
  const float magnitude = std::bit_cast<float>(bits);
  const float power = std::bit_cast<float>(bits & 0x7f800000u);  // 2^floor(log2 |x|)
  const float step = power * (magnitude >= 0x1p-7f ? 0.125f : 0.25f);
  float y = step > 0 ? round_even(magnitude / step) * step : 0;
  if (y <= 0x1p-23f) y = y == 0x1p-23f ? 0x1.4p-23f : 0;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(y) |
                              (std::bit_cast<uint32_t>(x) & 0x80000000u));
}

}  // namespace maniple::grid_rows

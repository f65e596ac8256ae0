// Keyed randomness: a draw is a pure function of its key, never of a sequence, so any sharding and
// any order give the same numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

namespace maniple {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

// The finaliser of SplitMix64: a bijection of 64-bit words (Stafford's variant 13).
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// FNV-1a, 64 bits.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return h;
}

constexpr uint64_t key_of(uint64_t a) { return mix64(a + kGolden); }
template <typename... Rest>
constexpr uint64_t key_of(uint64_t a, Rest... rest) {
  return mix64(mix64(a + kGolden) ^ key_of(static_cast<uint64_t>(rest)...));
}

// Uniform in (0, 1), 53 bits.
inline double uniform(uint64_t key, uint64_t index) {
  return (static_cast<double>(mix64(key + (index + 1) * kGolden) >> 11) + 0.5) * 0x1p-53;
}

// Standard normal (Box-Muller on two keyed uniforms).
inline double normal(uint64_t key, uint64_t index) {
  const double u = uniform(key, 2 * index), v = uniform(key, 2 * index + 1);
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

}  // namespace maniple

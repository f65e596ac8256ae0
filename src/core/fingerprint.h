// 128-bit order-free fingerprint of a tensor's bits: over 32-bit words with their index in the
// whole tensor, lo = sum of one mix modulo 2^64, hi = XOR of another. Fingerprints of disjoint
// parts combine into that of the whole, whatever the layout. Source: spec/elastic.md section 6.
#pragma once

#include <cstdint>
#include <string>

#include "core/random.h"

namespace maniple {

struct Fingerprint {
  uint64_t lo = 0, hi = 0;
  bool operator==(const Fingerprint&) const = default;

  void add_word(uint32_t word, uint64_t index, uint64_t key) {
    const uint64_t x = mix64(key + index * kGolden) ^ word;
    lo += mix64(x);
    hi ^= mix64(x + kGolden);
  }
  void combine(const Fingerprint& other) {
    lo += other.lo;
    hi ^= other.hi;
  }
  std::string hex() const;  // 32 digits
};

}  // namespace maniple

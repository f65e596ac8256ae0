// A hash of bytes that parallel processors compute as a sum: of the words of 8 bytes, each mixed with
// its index. Not for bytes that somebody chooses. The reference of device::hash.
#pragma once

#include <cstdint>
#include <span>

#include "core/random.h"

namespace maniple {

constexpr uint64_t word_hash_term(uint64_t word, uint64_t index) {
  return mix64(word + (index + 1) * kGolden);
}

// The last word is filled up with zeros.
constexpr uint64_t word_of(const uint8_t* bytes, int64_t num_bytes, int64_t index) {
  uint64_t word = 0;
  for (int64_t k = 8 * index; k < 8 * index + 8 && k < num_bytes; ++k)
    word |= uint64_t{bytes[k]} << (8 * (k - 8 * index));
  return word;
}

// The hash of num_bytes bytes from the sum of their terms.
constexpr uint64_t word_hash_end(uint64_t sum, int64_t num_bytes) {
  return mix64(sum + static_cast<uint64_t>(num_bytes));
}

constexpr uint64_t word_hash(std::span<const uint8_t> bytes) {
  const auto n = static_cast<int64_t>(bytes.size());
  uint64_t sum = 0;
  for (int64_t i = 0; i < (n + 7) / 8; ++i)
    sum += word_hash_term(word_of(bytes.data(), n, i), static_cast<uint64_t>(i));
  return word_hash_end(sum, n);
}

}  // namespace maniple

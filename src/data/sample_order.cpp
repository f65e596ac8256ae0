#include "data/sample_order.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/errors.h"
#include "core/random.h"

namespace maniple {

Permutation::Permutation(uint64_t n, uint64_t key)
    : n_(n), key_(key), half_bits_(std::max(1, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2)) {
  MANIPLE_INVARIANT(n >= 1 && n <= uint64_t{1} << 62, "permutation of {} elements", n);
}

uint64_t Permutation::operator()(uint64_t i) const {
  MANIPLE_INVARIANT(i < n_, "element {} of a permutation of {}", i, n_);
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = i >> half_bits_, right = i & mask;
    for (uint64_t round = 0; round < 8; ++round) {
      const uint64_t next = left ^ (mix64((key_ + round * kGolden) ^ mix64(right)) & mask);
      left = right;
      right = next;
    }
    i = left << half_bits_ | right;
  } while (i >= n_);
  return i;
}

Blend::Blend(std::vector<uint64_t> weights)
    : weights_(std::move(weights)), remaining_(weights_.size()) {
  uint64_t sum = 0;
  for (size_t i = weights_.size(); i-- > 0;) remaining_[i] = sum += weights_[i];
  MANIPLE_INVARIANT(sum > 0, "a blend of {} sources without weight", weights_.size());
}

Blend::Choice Blend::operator()(uint64_t k) const {
  for (size_t i = 0;; ++i) {
    const uint64_t weight = weights_[i], sum = remaining_[i];
    if (weight == sum) return {static_cast<int64_t>(i), k};
    const auto taken_before = [&](uint64_t count) {
      using Wide = unsigned __int128;
      return static_cast<uint64_t>((Wide{count} * weight + sum / 2) / sum);
    };
    const uint64_t before = taken_before(k);
    if (taken_before(k + 1) > before) return {static_cast<int64_t>(i), before};
    k -= before;
  }
}

}  // namespace maniple

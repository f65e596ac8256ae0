// Which row comes when: pure functions with O(1) memory and O(1) random access.
#pragma once

#include <cstdint>
#include <vector>

namespace maniple {

// A keyed bijection of [0, n): an eight-round Feistel network on the least even number of bits that
// holds n, repeated until the value falls inside (fewer than four times on average).
class Permutation {
 public:
  Permutation(uint64_t n, uint64_t key);  // n in 1 .. 2^62
  uint64_t operator()(uint64_t i) const;  // i < n

 private:
  uint64_t n_, key_;
  int half_bits_;
};

// Distributes the numbers 0, 1, 2, ... over sources in proportion to integer weights, evenly: the
// first of m sources takes number k when rint(k p) steps, p = weight / sum of weights; what it
// leaves, numbered anew, is distributed in the same way over the other sources. So with two sources
// the counts among the first k numbers are never off by more than 1/2, with m by less than m / 2;
// and sum-of-weights numbers give each source exactly its weight.
class Blend {
 public:
  explicit Blend(std::vector<uint64_t> weights);  // not all 0; sum < 2^62

  struct Choice {
    int64_t source;
    uint64_t index;  // how many smaller numbers went to this source
  };
  Choice operator()(uint64_t k) const;

 private:
  std::vector<uint64_t> weights_, remaining_;  // remaining_[i]: sum of weights_[i...]
};

}  // namespace maniple

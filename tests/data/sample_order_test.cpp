#include "data/sample_order.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace maniple {
namespace {

TEST(Permutation, IsABijectionOfAnySize) {
  for (uint64_t n : {1, 2, 3, 4, 5, 7, 16, 17, 255, 257, 1000, 4097, 65537}) {
    const Permutation order(n, 12345);
    std::vector<int> seen(n);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t to = order(i);
      ASSERT_LT(to, n);
      ASSERT_EQ(seen[to]++, 0) << n;
    }
  }
}

TEST(Permutation, DependsOnTheKeyAndLeavesFewInPlace) {
  const uint64_t n = 10007;
  const Permutation a(n, 1), b(n, 2);
  int fixed = 0, equal = 0, neighbours = 0;
  for (uint64_t i = 0; i < n; ++i) {
    fixed += a(i) == i;
    equal += a(i) == b(i);
    if (i > 0) neighbours += a(i) == a(i - 1) + 1;
  }
  EXPECT_LT(fixed, 10);  // 1 expected
  EXPECT_LT(equal, 10);
  EXPECT_LT(neighbours, 10);
}

TEST(Permutation, EveryOrderOfThreeComesAboutEquallyOften) {
  int count[27] = {};
  for (uint64_t key = 0; key < 6000; ++key) {
    const Permutation order(3, key);
    ++count[order(0) * 9 + order(1) * 3 + order(2)];
  }
  for (int k : {5, 7, 11, 15, 19, 21}) EXPECT_NEAR(count[k], 1000, 150) << k;
}

TEST(Blend, IndexesOfEachSourceAreConsecutiveAndCountsFollowTheWeights) {
  const std::vector<std::vector<uint64_t>> cases = {
      {1}, {1, 1}, {1, 3}, {1, 2, 1}, {0, 5, 0, 7}, {1000, 1}, {3, 5, 7, 11, 13}};
  for (const auto& weights : cases) {
    const Blend blend(weights);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<uint64_t> count(weights.size());
    for (uint64_t k = 0; k < 5000; ++k) {
      const auto [source, index] = blend(k);
      ASSERT_EQ(index, count[source]++);
      for (size_t i = 0; i < weights.size(); ++i)
        ASSERT_LE(std::abs(count[i] - (k + 1) * weights[i] / sum), weights.size() / 2.0 + 1e-9);
    }
  }
}

TEST(Blend, ARoundGivesEachSourceExactlyItsWeight) {
  const std::vector<uint64_t> weights = {17, 0, 1, 300, 41};
  const Blend blend(weights);
  std::vector<uint64_t> count(weights.size());
  for (uint64_t k = 0; k < 359; ++k) ++count[blend(k).source];
  EXPECT_EQ(count, weights);
}

TEST(Blend, HugeNumbersDoNotOverflow) {
  const Blend blend({uint64_t{1} << 32, uint64_t{1} << 32});
  const auto a = blend(~uint64_t{0} - 1), b = blend(~uint64_t{0} - 2);
  EXPECT_NE(a.source, b.source);
  EXPECT_NEAR(static_cast<double>(a.index), 0x1p63, 4096);
}

}  // namespace
}  // namespace maniple

#include "trainer/load_metrics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace maniple {
namespace {

TEST(LoadMetrics, OfATable) {
  const LoadMetrics m = measure_load({{4, 0, 2, 2}, {2, 2, 2, 2}, {0, 0, 0, 8}}, 2);
  EXPECT_EQ(m.max_over_mean, (std::vector<double>{2, 1, 4}));
  EXPECT_EQ(m.worst, 4);
  EXPECT_EQ(m.p50, 2);
  EXPECT_EQ(m.p95, 4);
  EXPECT_DOUBLE_EQ(m.mean, 7.0 / 3);
  EXPECT_DOUBLE_EQ(m.ranks_max_over_mean, 2);  // the second rank gets all of the last layer
  EXPECT_EQ(m.without_tokens, 4);
  EXPECT_DOUBLE_EQ(m.variation, (std::sqrt(2.0) / 2 + 0 + std::sqrt(12.0) / 2) / 3);
}

TEST(LoadMetrics, NoTokensAtAll) {
  const LoadMetrics m = measure_load({{0, 0}}, 2);
  EXPECT_EQ(m.worst, 0);
  EXPECT_EQ(m.ranks_max_over_mean, 0);
  EXPECT_EQ(m.variation, 0);
}

TEST(LoadMetrics, PercentileIsTheNearestRank) {
  EXPECT_EQ(percentile({5, 1, 3, 2, 4}, 0.5), 3);
  EXPECT_EQ(percentile({5, 1, 3, 2}, 0.5), 2);
  EXPECT_EQ(percentile({5, 1}, 0.95), 5);
  EXPECT_EQ(percentile({5}, 0.0), 5);
}

TEST(LoadWatch, WarnsOfAStarvingExpertOnceUntilItEats) {
  LoadWatch watch(3, 0);
  const CountTable starved = {{1, 1}, {2, 0}}, fed = {{1, 1}, {1, 1}};
  EXPECT_TRUE(watch.update(starved).empty());
  EXPECT_TRUE(watch.update(starved).empty());
  const auto warnings = watch.update(starved);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("expert 1 of MoE layer 1 had no token in 3 steps"), std::string::npos);
  EXPECT_EQ(watch.num_starving(), 1);
  EXPECT_TRUE(watch.update(starved).empty());
  EXPECT_TRUE(watch.update(fed).empty());
  EXPECT_EQ(watch.num_starving(), 0);
  watch.update(starved);
  watch.update(starved);
  EXPECT_EQ(watch.update(starved).size(), 1u);
}

TEST(LoadWatch, WarnsOfImbalanceThatStays) {
  LoadWatch watch(2, 0.5);
  const CountTable uneven = {{4, 1, 1, 2}}, even = {{2, 2, 2, 2}};  // MaxVio 1, 0
  EXPECT_TRUE(watch.update(uneven).empty());
  EXPECT_TRUE(watch.update(even).empty());
  EXPECT_TRUE(watch.update({{3, 2, 2, 1}}).empty());  // 0.5 is not above
  EXPECT_TRUE(watch.update(uneven).empty());
  const auto warnings = watch.update(uneven);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("MaxVio 1.00"), std::string::npos) << warnings[0];
  EXPECT_TRUE(watch.update(uneven).empty());
}

}  // namespace
}  // namespace maniple

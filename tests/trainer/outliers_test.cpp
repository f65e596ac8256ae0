// Which steps are replayed because of their numbers, and which units two slices compute.
#include "trainer/outliers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/random.h"
#include "trainer/step.h"

namespace maniple {
namespace {

Outliers::Numbers clean(int64_t step) {
  const auto k = static_cast<uint64_t>(step);
  return {3 * std::exp(-1e-4 * static_cast<double>(step)) + 0.05 * normal(1, k),
          1 + 0.2 * normal(2, k)};
}

TEST(Outliers, CleanStepsAreNotReplayed) {
  Outliers o(2);
  int64_t replays = 0;
  for (int64_t step = 1; step <= 10000; ++step) {
    const bool suspicious = o.may_replay() && o.suspect(clean(step));
    replays += suspicious;
    o.commit(clean(step), suspicious);
  }
  EXPECT_LE(replays, 25);
}

TEST(Outliers, ASpikeIsSuspiciousOnceAndThenAdaptedTo) {
  Outliers o(2);
  for (int64_t step = 1; step <= 200; ++step) o.commit(clean(step), false);
  EXPECT_FALSE(o.suspect(clean(201)));
  EXPECT_EQ(o.suspect({8, 1}), 0u);
  EXPECT_EQ(o.suspect({3, 40}), 1u);
  EXPECT_EQ(o.suspect({std::nan(""), 1}), 0u);
  o.commit({8, 1}, true);
  EXPECT_FALSE(o.suspect({8, 1}));
  EXPECT_TRUE(o.suspect({80, 1}));
}

TEST(Outliers, NothingIsSuspiciousBeforeTheHistoryIsFullOrAfterAChange) {
  Outliers o(2);
  for (int64_t step = 1; step < Outliers::kWindow; ++step) o.commit(clean(step), false);
  EXPECT_FALSE(o.suspect({100, 100}));
  o.commit(clean(128), false);
  EXPECT_TRUE(o.suspect({100, 100}));
  o.quiet_for(1);
  EXPECT_FALSE(o.suspect({100, 100}));
}

TEST(Outliers, TheBudgetIsKept) {
  Outliers o(2);
  int64_t replays = 0;
  for (int64_t step = 1; step <= 4000; ++step) {
    replays += o.may_replay();
    o.commit({std::nan(""), 0}, o.may_replay());
  }
  EXPECT_GE(replays, 4);
  EXPECT_LE(replays, 4 + 4000 * Outliers::kBudget + 1);
}

TEST(Outliers, TheStateIsWhole) {
  Outliers a(2), b(2);
  for (int64_t step = 1; step <= 77; ++step) a.commit(clean(step), step == 50);
  b.set_state(a.state());
  for (int64_t step = 78; step <= 300; ++step) {
    const Outliers::Numbers n = step % 40 ? clean(step) : Outliers::Numbers{9, 9};
    ASSERT_EQ(a.suspect(n), b.suspect(n));
    a.commit(n, a.suspect(n).has_value());
    b.commit(n, b.suspect(n).has_value());
  }
  EXPECT_EQ(a.state(), b.state());
}

TEST(Canary, EveryPairMeetsAndTheSecondIsAnotherSlice) {
  for (int64_t slices : {2, 3, 4, 5})
    for (int64_t units : {slices, 3 * slices, 12 * slices}) {
      std::set<std::pair<int64_t, int64_t>> pairs;
      std::set<int64_t> seen;
      for (int64_t step = 1; step <= 8 * 5000; ++step) {
        const auto c = canary_of(step, units, slices, 8);
        ASSERT_EQ(c.has_value(), step % 8 == 0);
        if (!c) continue;
        const int64_t owner = c->unit * slices / units;
        ASSERT_NE(owner, c->second);
        pairs.insert({owner, c->second});
        seen.insert(c->unit);
      }
      EXPECT_EQ(static_cast<int64_t>(pairs.size()), slices * (slices - 1));
      EXPECT_EQ(static_cast<int64_t>(seen.size()), units);
    }
}

TEST(Canary, SlicesWithAUnitLessComputeOneInEveryStep) {
  std::set<int64_t> seconds, units;
  for (int64_t step = 1; step <= 1000; ++step) {
    const auto c = canary_of(step, 11, 4, 100);  // 2, 3, 3, 3 units
    ASSERT_TRUE(c);
    seconds.insert(c->second);
    units.insert(c->unit);
  }
  EXPECT_EQ(seconds, std::set<int64_t>{0});
  EXPECT_EQ(units.size(), 9u);
  EXPECT_FALSE(canary_of(100, 12, 4, 0));
  EXPECT_FALSE(canary_of(100, 12, 1, 1));
}

}  // namespace
}  // namespace maniple

#include "elastic/stragglers.h"

#include <gtest/gtest.h>

namespace maniple {
namespace {

TEST(StragglerWatch, ASliceThatStaysSlowIsNamedOnceAndItsRecoveryToo) {
  StragglerWatch watch;
  std::vector<StragglerWatch::Notice> said;
  const auto steps = [&](Time last, Step from, Step to) {
    for (Step s = from; s < to; ++s)
      for (const auto& notice : watch.see({{0, 100}, {1, 110}, {2, last}}, s)) said.push_back(notice);
  };
  steps(300, 1, 21);
  EXPECT_TRUE(said.empty());
  steps(300, 21, 100);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].slice, 2u);
  EXPECT_TRUE(said[0].slow);
  EXPECT_EQ(said[0].unit, 300);
  EXPECT_EQ(said[0].others, 110);
  steps(140, 100, 200);  // better, not well
  EXPECT_EQ(said.size(), 1u);
  steps(105, 200, 201);
  ASSERT_EQ(said.size(), 2u);
  EXPECT_FALSE(said[1].slow);
}

TEST(StragglerWatch, NothingIsSaidOfShortSlownessOfUnknownOrSingleSlices) {
  StragglerWatch watch;
  for (Step s = 1; s < 200; ++s) {
    EXPECT_TRUE(watch.see({{0, 100}, {1, s % 15 == 0 ? 100 : 500}}, s).empty());
    EXPECT_TRUE(watch.see({{4, 100}, {5, 0}}, s).empty());
    EXPECT_TRUE(watch.see({{6, 100}}, s).empty());
  }
}

TEST(StragglerWatch, ANewMembershipBeginsAnew) {
  StragglerWatch watch;
  for (Step s = 1; s < 15; ++s) watch.see({{0, 100}, {1, 500}}, s);
  watch.restart();
  for (Step s = 15; s < 30; ++s) EXPECT_TRUE(watch.see({{0, 100}, {1, 500}}, s).empty());
}

}  // namespace
}  // namespace maniple

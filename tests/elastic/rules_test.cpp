// The small rules: votes, hangs, broken links, rows, time-outs.
#include <gtest/gtest.h>

#include "core/errors.h"
#include "elastic/hangs.h"
#include "elastic/links.h"
#include "elastic/rows.h"
#include "elastic/vote.h"

namespace maniple {
namespace {

Prepare vote(Health health, bool finite = true, int64_t tokens = 10) {
  Prepare p;
  p.report.health = health;
  p.report.finite = finite;
  p.report.tokens = tokens;
  return p;
}

TEST(Vote, OneRefusalRepeatsOneInfinitySkips) {
  EXPECT_EQ(decide({vote(Health::kOk), vote(Health::kOk)}), Outcome::kCommit);
  EXPECT_EQ(decide({vote(Health::kOk), vote(Health::kPoisoned)}), Outcome::kRedo);
  EXPECT_EQ(decide({vote(Health::kSuspect), vote(Health::kOk, false)}), Outcome::kRedo);
  EXPECT_EQ(decide({vote(Health::kOk), vote(Health::kOk, false)}), Outcome::kSkip);
  EXPECT_EQ(decide({vote(Health::kOk, true, 0), vote(Health::kOk, true, 0)}), Outcome::kSkip);
}

TEST(Vote, FixedPointCarries) {
  Fixed128 a{~0ull, 1};
  a += Fixed128{1, 2};
  EXPECT_EQ(a, (Fixed128{0, 4}));
}

TEST(Timeouts, KeepTheirOrder) {
  for (const Time lease : {100 * kMillisecond, 2 * kSecond, 3600 * kSecond}) {
    const Timeouts t(lease);
    EXPECT_LT(t.beat(), t.suspicion());
    EXPECT_LT(t.tick(), t.late());
    EXPECT_LT(t.suspicion(), t.lease());
    EXPECT_LE(t.connect(), t.lease());
    EXPECT_LT(t.lease(), t.hang(0));
    EXPECT_LT(t.hang(0), t.orphan());
    EXPECT_LT(t.orphan(), t.transport());
    EXPECT_LT(t.transport(), t.harness());
  }
  EXPECT_EQ(Timeouts(kSecond).hang(kSecond), 20 * kSecond);
  EXPECT_THROW(Timeouts(0), ConfigError);
  EXPECT_THROW(Timeouts(99 * kMillisecond), ConfigError);
}

TEST(Hangs, TheLimitFollowsTheMedianGap) {
  const Timeouts t(kSecond);
  ProgressWatch watch;
  watch.restart(0);
  Time now = 0;
  for (uint64_t n = 1; n <= 10; ++n) watch.see({n, {}}, now += kSecond);
  EXPECT_FALSE(watch.stuck(t, now + 20 * kSecond));
  EXPECT_TRUE(watch.stuck(t, now + 20 * kSecond + 1));
  watch.see({9, {}}, now + 20 * kSecond + 1);  // an old beat
  EXPECT_TRUE(watch.stuck(t, now + 20 * kSecond + 1));
}

TEST(Hangs, TheSliceThatWaitsForNobodyIsCharged) {
  const auto S = Motion::kStuck;
  EXPECT_EQ(charge_hang({{0, S, 2}, {1, S, 0}, {2, S, {}}}).slice, 2u);
  // Who waits for one that gets on, or for nobody's member, is not a hang of the others.
  const HangCharge none = charge_hang({{0, S, 1}, {1, Motion::kMoving, {}}});
  EXPECT_FALSE(none.slice || none.link);
  EXPECT_EQ(charge_hang({{0, S, 7}, {1, Motion::kMoving, {}}}).slice, 0u);
  const HangCharge circle = charge_hang({{0, S, 1}, {1, S, 0}, {2, S, 0}});
  EXPECT_FALSE(circle.slice);
  EXPECT_EQ(circle.link, std::make_pair(0u, 1u));
  const HangCharge done = charge_hang({{3, S, 1}, {1, Motion::kDone, {}}});
  EXPECT_EQ(done.link, std::make_pair(1u, 3u));
  EXPECT_EQ(charge_hang({{0, S, 1}, {1, S, 0}, {2, S, {}}}).slice, 2u);
}

TEST(Links, TheSecondBreakWithinAHundredStepsDropsTheWorseEnd) {
  LinkBook book;
  EXPECT_FALSE(book.note({{0, 1}}, 10));
  EXPECT_EQ(book.note({{0, 1}}, 50), 1u);  // a tie: the higher number
  LinkBook other;
  EXPECT_FALSE(other.note({{0, 1}, {0, 2}}, 10));
  EXPECT_EQ(other.note({{0, 1}}, 20), 0u);
  LinkBook forgetful;
  EXPECT_FALSE(forgetful.note({{0, 1}}, 10));
  EXPECT_FALSE(forgetful.note({{0, 1}}, 111));
}

TEST(Rows, AreWrittenOnceInOrderAndCompared) {
  RowBook book(3);
  EXPECT_TRUE(book.accept({{5, "e"}}, 9).write.empty());
  EXPECT_EQ(book.accept({{4, "d"}, {5, "e"}, {6, "f"}}, 5).write.size(), 2u);
  EXPECT_EQ(book.accept({{4, "d"}, {5, "E"}}, 9).differing, std::vector<Step>{5});
  EXPECT_EQ(book.written(), 5);
  book.restart_after(4);
  EXPECT_EQ(book.accept({{5, "e"}}, 9).write.size(), 1u);
  book.restart_after(20);
  EXPECT_EQ(book.accept({{21, "u"}}, 30).write.size(), 1u);
}

}  // namespace
}  // namespace maniple

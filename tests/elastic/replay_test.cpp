// What executions of a suspicious step say about the slices.
#include "elastic/replay.h"

#include <gtest/gtest.h>

#include <functional>

namespace maniple {
namespace {

// What a member computes for a range in an execution; 0: the right result.
using Error = std::function<uint64_t(uint32_t member, uint32_t range, size_t execution)>;

// Executes until there is a verdict; `seen`: how often.
Judgement replay(uint32_t members, const Error& error, size_t* seen = nullptr) {
  std::vector<Execution> executions;
  for (uint32_t n = 0; n < 8; ++n) {
    Execution e{rotation_of(n, members), std::vector<Fingerprint>(members)};
    for (uint32_t range = 0; range < members; ++range)
      e.ranges[range] = {range + 1, error(e.member_of(range), range, n)};
    executions.push_back(e);
    const Judgement j = judge(executions);
    if (seen) *seen = executions.size();
    if (j.finding != Finding::kOpen) return j;
  }
  return {};
}
using Blamed = std::vector<uint32_t>;

class Members : public testing::TestWithParam<uint32_t> {};

TEST_P(Members, EachRangeHasOneMemberInEachRotation) {
  for (uint32_t n = 0; n < 4; ++n) {
    const Execution e{rotation_of(n, GetParam()), std::vector<Fingerprint>(GetParam())};
    std::vector<bool> used(GetParam());
    for (uint32_t range = 0; range < GetParam(); ++range) {
      const uint32_t m = e.member_of(range);
      EXPECT_EQ((m + e.rotation) % GetParam(), range);
      EXPECT_FALSE(used[m]);
      used[m] = true;
    }
  }
}

TEST_P(Members, EqualResultsAreGenuine) {
  size_t seen = 0;
  const Judgement j = replay(GetParam(), [](auto...) { return 0; }, &seen);
  EXPECT_EQ(j.finding, Finding::kGenuine);
  EXPECT_TRUE(j.commits());
  EXPECT_EQ(seen, 3u);
}

TEST_P(Members, AnErrorOnceIsTransientWhereverItFalls) {
  for (uint32_t who = 0; who < GetParam(); ++who)
    for (size_t when : {0u, 1u}) {
      const Judgement j = replay(GetParam(), [&](uint32_t m, uint32_t, size_t n) {
        return m == who && n == when ? 7u : 0u;
      });
      EXPECT_EQ(j.finding, Finding::kTransient);
      EXPECT_EQ(j.blamed, Blamed{who});
    }
}

TEST_P(Members, WhoNeverRepeatsItselfIsDefect) {
  const Judgement j = replay(GetParam(), [](uint32_t m, uint32_t, size_t n) -> uint64_t {
    return m == 0 ? 10 + n : 0;
  });
  EXPECT_EQ(j.finding, Finding::kDefect);
  EXPECT_EQ(j.blamed, Blamed{0});
  EXPECT_FALSE(j.commits());
}

INSTANTIATE_TEST_SUITE_P(All, Members, testing::Values(1, 2, 3, 4, 7));

TEST(Replay, WhoIsAlwaysWrongIsNamedByTheRotation) {
  for (uint32_t members : {3u, 4u, 7u})
    for (uint32_t who = 0; who < members; ++who) {
      size_t seen = 0;
      const Judgement j =
          replay(members, [&](uint32_t m, uint32_t, size_t) { return m == who ? 7u : 0u; }, &seen);
      EXPECT_EQ(j.finding, Finding::kDefect);
      EXPECT_EQ(j.blamed, Blamed{who});
      EXPECT_EQ(seen, 3u);
    }
}

TEST(Replay, WhoIsWrongForSomeDataIsNamedByAThirdOpinion) {
  for (uint32_t members : {3u, 4u, 7u})
    for (uint32_t who = 0; who < members; ++who)
      for (uint32_t offset : {0u, 1u}) {
        const uint32_t range = (who + offset) % members;  // computed by it in the rotation `offset`
        size_t seen = 0;
        const Judgement j = replay(
            members, [&](uint32_t m, uint32_t r, size_t) { return m == who && r == range ? 7u : 0u; },
            &seen);
        EXPECT_EQ(j.finding, Finding::kDefect);
        EXPECT_EQ(j.blamed, Blamed{who});
        EXPECT_EQ(seen, 4u);
      }
}

TEST(Replay, TwoSlicesThatContradictEachOtherAreBothNamed) {
  const Judgement j = replay(2, [](uint32_t m, uint32_t, size_t) { return m == 1 ? 7u : 0u; });
  EXPECT_EQ(j.finding, Finding::kUndecided);
  EXPECT_EQ(j.blamed, (Blamed{0, 1}));
  EXPECT_FALSE(j.commits());
}

TEST(Replay, SeveralAtOnceIsSoftware) {
  const Judgement random = replay(4, [](uint32_t m, uint32_t r, size_t n) -> uint64_t {
    return 1 + 100 * m + 10 * r + n;
  });
  EXPECT_EQ(random.finding, Finding::kSoftware);
  EXPECT_TRUE(random.blamed.empty());
  const Judgement unequal = replay(4, [](uint32_t m, uint32_t, size_t) -> uint64_t { return m / 2; });
  EXPECT_EQ(unequal.finding, Finding::kSoftware);
}

TEST(Replay, DescriptionsNameTheSlices) {
  EXPECT_NE(describe({Finding::kDefect, {1}}, {0, 3}).find("slice 3 "), std::string::npos);
  EXPECT_NE(describe({Finding::kUndecided, {0, 1}}, {0, 3}).find("0 and 3"), std::string::npos);
}

}  // namespace
}  // namespace maniple

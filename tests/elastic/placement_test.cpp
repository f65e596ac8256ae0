#include "elastic/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "core/random.h"
#include "elastic/reshard.h"

namespace maniple {
namespace {

std::vector<Member> members_of(std::initializer_list<uint32_t> slices, uint32_t per_host = 1) {
  std::vector<Member> members;
  for (const uint32_t s : slices) members.push_back({s, 1, s / per_host});
  return members;
}

std::vector<Member> many(uint32_t count, uint32_t per_host = 1) {
  std::vector<Member> members;
  for (uint32_t s = 0; s < count; ++s) members.push_back({s, 1, s / per_host});
  return members;
}

void expect_balanced(const std::vector<BlockPlace>& places, size_t num_members, const char* what,
                     int32_t BlockPlace::*role) {
  std::vector<int64_t> counts(num_members, 0);
  for (const BlockPlace& p : places) ++counts[static_cast<size_t>(p.*role)];
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  EXPECT_LE(*most - *least, 1) << what << ", " << num_members << " members, " << places.size()
                               << " blocks";
}

TEST(Placement, CountsDifferByAtMostOneAndShadowsAreElsewhere) {
  for (uint32_t m = 2; m <= 12; ++m)
    for (int64_t blocks = 0; blocks <= 40; ++blocks) {
      const auto places = place(blocks, many(m));
      expect_balanced(places, m, "owners", &BlockPlace::owner);
      expect_balanced(places, m, "shadows", &BlockPlace::shadow);
      for (const BlockPlace& p : places) EXPECT_NE(p.owner, p.shadow);
    }
}

TEST(Placement, EqualHostsNeverHoldBothCopies) {
  for (const uint32_t per_host : {1u, 2u, 4u})
    for (uint32_t hosts = 2; hosts <= 5; ++hosts) {
      const auto members = many(hosts * per_host, per_host);
      for (const int64_t blocks : {1, 7, 40, 97})
        for (const BlockPlace& p : place(blocks, members))
          EXPECT_NE(members[static_cast<size_t>(p.owner)].host,
                    members[static_cast<size_t>(p.shadow)].host)
              << hosts << " hosts of " << per_host << ", " << blocks << " blocks";
    }
}

TEST(Placement, OneMemberHasNoShadow) {
  for (const BlockPlace& p : place(5, members_of({7}))) EXPECT_EQ(p, (BlockPlace{0, -1}));
}

TEST(Placement, OnlySliceNumbersMatter) {
  const auto a = members_of({1, 4, 9}), b = members_of({9, 1, 4});
  const auto x = place(50, a), y = place(50, b);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(a[static_cast<size_t>(x[i].owner)].slice, b[static_cast<size_t>(y[i].owner)].slice);
    EXPECT_EQ(a[static_cast<size_t>(x[i].shadow)].slice, b[static_cast<size_t>(y[i].shadow)].slice);
  }
}

// Copies that a lost member makes necessary: at least its share of both roles; here at most twice
// that.
TEST(Placement, FewHoldersChangeWhenAMemberLeaves) {
  const BlockLayout layout{600, Redundancy::kShadow};
  for (const uint32_t n : {3u, 4u, 8u, 16u}) {
    for (uint32_t gone = 0; gone < n; ++gone) {
      EpochDecision d;
      d.number = 2;
      d.lineage = 1;
      d.past.push_back({1, many(n)});
      for (const Member& m : many(n))
        if (m.slice != gone) d.members.push_back(m);
      d.holds.assign(d.members.size(), {1});
      ASSERT_FALSE(lost_block(layout, d));
      const double share = 2.0 * 600 / n;
      EXPECT_LE(static_cast<double>(plan_copies(layout, d).size()), 2 * share)
          << gone << " of " << n;
    }
  }
}

TEST(Placement, AJoinerGetsItsShareAndLittleElseMoves) {
  const BlockLayout layout{600, Redundancy::kShadow};
  for (const uint32_t n : {3u, 4u, 8u, 16u}) {
    EpochDecision d;
    d.number = 2;
    d.lineage = 1;
    d.past.push_back({1, many(n - 1)});
    d.members = many(n);
    d.holds.assign(n, {1});
    d.holds.back().clear();
    const auto copies = plan_copies(layout, d);
    const auto to_joiner = std::count_if(copies.begin(), copies.end(), [&](const BlockCopy& c) {
      return c.to == static_cast<int32_t>(n) - 1;
    });
    EXPECT_NEAR(static_cast<double>(to_joiner), 2.0 * 600 / n, 2);
    EXPECT_LE(static_cast<double>(copies.size()), 4.0 * 600 / n);
  }
}

TEST(Reshard, TwoLostHoldersOfABlockAreNoticed) {
  const BlockLayout layout{64, Redundancy::kShadow};
  const auto all = many(4);
  const auto places = place(64, all);
  EpochDecision d;
  d.number = 2;
  d.lineage = 1;
  d.past.push_back({1, all});
  for (const Member& m : all)
    if (m.slice != static_cast<SliceId>(places[5].owner) &&
        m.slice != static_cast<SliceId>(places[5].shadow))
      d.members.push_back(m);
  d.holds.assign(2, {1});
  ASSERT_TRUE(lost_block(layout, d));
  d.holds.assign(2, {});
  EXPECT_EQ(lost_block(layout, d), 0);
}

TEST(Reshard, AnotherLifeOfAHolderHoldsNothing) {
  const BlockLayout layout{8, Redundancy::kShadow};
  EpochDecision d;
  d.number = 2;
  d.lineage = 1;
  d.past.push_back({1, many(2)});
  d.members = many(2);
  d.members[0].life = 2;
  d.holds = {{1}, {1}};
  for (const auto& of_block : present_holders(layout, d))
    EXPECT_EQ(of_block, std::vector<int32_t>{1});
  for (const BlockCopy& c : plan_copies(layout, d)) EXPECT_EQ(c.to, 0);
}

TEST(Reshard, CopiesComeFromHoldersAndCompleteThePlacement) {
  const BlockLayout layout{100, Redundancy::kShadow};
  EpochDecision d;
  d.number = 3;
  d.lineage = 1;
  d.past = {{1, many(5)}, {2, many(4)}};
  d.members = members_of({0, 2, 3, 4, 6});
  d.holds = {{1}, {1, 2}, {1}, {1}, {}};
  const auto present = present_holders(layout, d), wanted = holders(layout, d.members);
  ASSERT_FALSE(lost_block(layout, d));
  auto reached = present;
  for (const BlockCopy& c : plan_copies(layout, d)) {
    const auto& donors = present[static_cast<size_t>(c.block)];
    EXPECT_TRUE(std::binary_search(donors.begin(), donors.end(), c.from));
    reached[static_cast<size_t>(c.block)].push_back(c.to);
  }
  for (size_t b = 0; b < wanted.size(); ++b)
    for (const int32_t m : wanted[b])
      EXPECT_EQ(std::count(reached[b].begin(), reached[b].end(), m), 1);
}

}  // namespace
}  // namespace maniple

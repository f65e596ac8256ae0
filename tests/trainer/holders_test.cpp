// Blocks of the optimizer state with several holders (ShardedAdamw::set_holders): the state does not
// depend on who holds what, and all holders of a block have the same bits.
#include <barrier>
#include <map>

#include "elastic/reshard.h"
#include "members.h"
#include "tiny_trainer.h"

namespace maniple {
namespace {

struct HoldersLayout {
  int64_t slices, ep;
  Redundancy redundancy;
};

class Holders : public testing::TestWithParam<HoldersLayout> {};

TEST_P(Holders, StateDoesNotDependOnThem) {
  const auto [slices, ep, redundancy] = GetParam();
  Config c = tiny_config();
  c.parallel.ep = ep;
  c.batch.rows = 8 * ep;
  const auto ranks = static_cast<int>(slices * ep);
  c.parallel.slices = 1;
  const TrainedSteps expected = train_steps(c, static_cast<int>(ep));
  c.parallel.slices = slices;
  std::mutex mutex;
  uint64_t state_check = 0, reduced_check = 0, one_check = 0, sums_check = 0, one_sum = 0;  // over all ranks
  std::map<std::pair<int64_t, int64_t>, std::vector<at::Tensor>> copies;  // (position, block)
  const TrainedSteps seen = train_steps(c, ranks, [&](Trainer& t, int64_t step) {
    ShardedAdamw& optimizer = *t.model.optimizer;
    const BlockHolders now = holders({optimizer.num_blocks(), redundancy}, members_of(slices));
    if (step == 1) {
      optimizer.forget();
      optimizer.set_holders(now);
      set_random_weights(t.model, c.run.seed);
      optimizer.publish();
      return;
    }
    const std::lock_guard lock(mutex);
    if (step == 2) return;
    optimizer.seal();
    const uint64_t check = optimizer.state_check(optimizer.state_hashes());
    state_check += check;
    one_check |= check;
    const auto [added, equal] = optimizer.measure(/*check=*/true).check;
    reduced_check += equal;
    sums_check += optimizer.addends_check() + added;
    one_sum |= added;
    for (int64_t b = 0; b < optimizer.num_blocks(); ++b)
      if (std::count(now[b].begin(), now[b].end(), t.mesh.slice()))
        copies[{t.mesh.position(), b}].push_back(optimizer.pack({b}));
  });
  for (size_t s = 0; s < expected.steps.size(); ++s) {
    EXPECT_EQ(seen.steps[s].loss, expected.steps[s].loss) << s;
    EXPECT_EQ(seen.steps[s].grad_norm, expected.steps[s].grad_norm) << s;
    EXPECT_TRUE(seen.states[s] == expected.states[s]) << s;
  }
  EXPECT_EQ(state_check, 0u);
  EXPECT_NE(one_check, 0u);
  EXPECT_EQ(reduced_check, 0u);
  EXPECT_EQ(sums_check, 0u);
  EXPECT_EQ(one_sum != 0, redundancy != Redundancy::kNone && slices > 1);
  const size_t per_block = redundancy == Redundancy::kNone     ? 1
                           : redundancy == Redundancy::kShadow ? 2
                                                               : static_cast<size_t>(slices);
  for (const auto& [block, states] : copies) {
    EXPECT_EQ(states.size(), per_block);
    for (const at::Tensor& state : states) EXPECT_TRUE(at::equal(state, states[0]));
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Holders,
                         testing::Values(HoldersLayout{2, 1, Redundancy::kShadow},
                                         HoldersLayout{4, 1, Redundancy::kShadow},
                                         HoldersLayout{4, 1, Redundancy::kReplicated},
                                         HoldersLayout{4, 1, Redundancy::kNone},
                                         HoldersLayout{2, 2, Redundancy::kShadow}));

// The holders of step 3 are others: what they lack is copied, what they held is dropped.
TEST(MovingHolders, KeepTheirState) {
  Config c = tiny_config();
  const TrainedSteps expected = train_steps(c, 1);
  c.parallel.slices = 4;
  std::mutex mutex;
  std::barrier all(4);
  std::map<int64_t, at::Tensor> given;
  const auto place = [&](Trainer& t, bool moved) {
    BlockHolders h = holders({t.model.optimizer->num_blocks(), Redundancy::kShadow}, members_of(4));
    for (auto& of : h)
      for (int32_t& slice : of) slice = moved ? (slice + 1) % 4 : slice;
    return h;
  };
  const TrainedSteps seen = train_steps(c, 4, [&](Trainer& t, int64_t step) {
    ShardedAdamw& optimizer = *t.model.optimizer;
    if (step == 1) {
      optimizer.forget();
      optimizer.set_holders(place(t, false));
      set_random_weights(t.model, c.run.seed);
      optimizer.publish();
    }
    if (step != 3) return;
    const BlockHolders before = place(t, false), after = place(t, true);
    const auto has = [&](const std::vector<int32_t>& of) {
      return std::count(of.begin(), of.end(), t.mesh.slice()) > 0;
    };
    for (int64_t b = 0; b < optimizer.num_blocks(); ++b) {
      const std::lock_guard lock(mutex);
      if (before[b][1] == t.mesh.slice()) given[b] = optimizer.pack({b});
    }
    all.arrive_and_wait();
    optimizer.set_holders(after);
    for (int64_t b = 0; b < optimizer.num_blocks(); ++b)
      if (has(after[b]) && !has(before[b])) optimizer.unpack({b}, given.at(b));
    const int64_t with_old = optimizer.state_bytes();
    optimizer.drop_unheld();
    EXPECT_LT(optimizer.state_bytes(), with_old);
    optimizer.refresh_values();
    optimizer.publish();
  });
  for (size_t s = 0; s < expected.steps.size(); ++s) {
    EXPECT_EQ(seen.steps[s].loss, expected.steps[s].loss) << s;
    EXPECT_TRUE(seen.states[s] == expected.states[s]) << s;
  }
}

}  // namespace
}  // namespace maniple

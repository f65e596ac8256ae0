#include "simulation.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "model.h"

namespace maniple::model {
namespace {

uint64_t setting(const char* name, uint64_t standard) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : standard;
}

TEST(Simulation, AFaultFreeJobNeedsOneEpoch) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const HistoryResult result = run_history({.seed = seed, .faults = false});
    EXPECT_TRUE(result.done);
    EXPECT_EQ(result.rollbacks, 0u);
    EXPECT_LE(result.epochs, 1u) << "seed " << seed;
  }
}

TEST(Simulation, TheSameSeedIsTheSameHistory) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const HistoryResult a = run_history({.seed = seed}), b = run_history({.seed = seed});
    EXPECT_EQ(a.seconds, b.seconds);
    EXPECT_EQ(a.commits, b.commits);
    EXPECT_EQ(a.epochs, b.epochs);
  }
}

// MANIPLE_SLOW=1: 100,000 histories. MANIPLE_HISTORIES and MANIPLE_SEED choose others,
// MANIPLE_TRACE=1 prints what happens.
TEST(Simulation, NoInvariantBreaksInSeededHistories) {
  const uint64_t first = setting("MANIPLE_SEED", 1);
  const uint64_t count = setting("MANIPLE_HISTORIES", setting("MANIPLE_SLOW", 0) ? 100'000 : 5'000);
  HistoryResult sum;
  uint64_t done = 0, broken = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    try {
      const HistoryResult result =
          run_history({.seed = seed, .trace = setting("MANIPLE_TRACE", 0) != 0});
      done += result.done;
      sum.epochs += result.epochs;
      sum.rollbacks += result.rollbacks;
      sum.commits += result.commits;
      sum.faults += result.faults;
      sum.coordinator_starts += result.coordinator_starts;
      sum.seconds += result.seconds;
    } catch (const std::exception& violation) {
      ADD_FAILURE() << "MANIPLE_SEED=" << seed << ": " << violation.what();
      if (++broken >= 5) break;
    }
  }
  fmt::print(
      "{} histories, {} done, {} faults, {} epochs, {} rollbacks, {} commits, {} starts of the "
      "coordinator, {:.0f} simulated seconds\n",
      count, done, sum.faults, sum.epochs, sum.rollbacks, sum.commits, sum.coordinator_starts,
      sum.seconds);
  EXPECT_GT(done, count * 9 / 10);
}

}  // namespace
}  // namespace maniple::model

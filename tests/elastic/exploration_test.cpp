#include "exploration.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace maniple::model {
namespace {

bool slow() {
  const char* text = std::getenv("MANIPLE_SLOW");
  return text && *text && std::string(text) != "0";
}

void explore_and_print(const ExplorationPlan& plan) {
  try {
    const ExplorationResult result = explore(plan);
    fmt::print(
        "{} slices, {} steps, {} crashes, {} evictions, {} crashes of the coordinator, {} refused "
        "attempts: {} states, {} moves, {} ends, deepest {}, {} after a rollback\n",
        plan.slices, plan.steps, plan.crashes, plan.evictions, plan.coordinator_crashes,
        plan.refusals, result.states, result.moves, result.ends, result.deepest, result.rollbacks);
    EXPECT_GT(result.ends, 0u);
  } catch (const std::exception& e) {
    ADD_FAILURE() << e.what();
  }
}

TEST(Exploration, TwoSlicesTwoStepsWithOneFaultOfEachKind) {
  explore_and_print({.slices = 2, .steps = 2, .updates_at_once = false});
}

TEST(Exploration, TwoSlicesWithARefusedAttempt) {
  explore_and_print({.slices = 2, .steps = 2, .coordinator_crashes = 0, .refusals = 1});
}

TEST(Exploration, ThreeSlicesTwoStepsWithACrash) {
  explore_and_print({.slices = 3, .steps = 2, .evictions = 0, .coordinator_crashes = 0});
}

// MANIPLE_SLOW=1: three slices with each pair of faults, then with all three.
TEST(Exploration, ThreeSlicesTwoStepsWithTwoFaults) {
  if (!slow()) GTEST_SKIP() << "MANIPLE_SLOW=1 explores this one";
  explore_and_print({.slices = 3, .steps = 2, .coordinator_crashes = 0});
  explore_and_print({.slices = 3, .steps = 2, .evictions = 0});
  explore_and_print({.slices = 3, .steps = 2, .crashes = 0});
}

TEST(Exploration, ThreeSlicesTwoStepsWithOneFaultOfEachKind) {
  if (!slow()) GTEST_SKIP() << "MANIPLE_SLOW=1 explores this one";
  explore_and_print({.slices = 3, .steps = 2});
}

}  // namespace
}  // namespace maniple::model

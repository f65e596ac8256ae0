#include "exploration.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace maniple::model {
namespace {

bool slow() {
  const char* text = std::getenv("MANIPLE_SLOW");
  return text && *text && std::string(text) != "0";
}

ExplorationResult explore_and_print(const ExplorationPlan& plan) {
  ExplorationResult result;
  try {
    result = explore(plan);
    fmt::print(
        "{} slices, {} steps, {} crashes, {} evictions, {} crashes of the coordinator, {} refused "
        "attempts{}{}{}: {} states, {} moves, {} ends, deepest {}, {} after a rollback\n",
        plan.slices, plan.steps, plan.crashes, plan.evictions, plan.coordinator_crashes,
        plan.refusals, plan.updates_at_once ? ", updates at once" : "",
        plan.late_prepares ? ", late PREPAREs" : "", plan.canonical ? "" : ", nothing left out",
        result.states, result.moves, result.ends, result.deepest, result.rollbacks);
    std::fflush(stdout);
    EXPECT_GT(result.ends, 0u);
  } catch (const std::exception& e) {
    ADD_FAILURE() << e.what();
  }
  return result;
}

TEST(Exploration, TwoSlicesTwoStepsWithOneFaultOfEachKind) {
  const auto reduced = explore_and_print({.slices = 2});
  const auto whole = explore_and_print({.slices = 2, .late_prepares = true, .canonical = false});
  EXPECT_LT(reduced.states, whole.states);
}

TEST(Exploration, TwoSlicesWithARefusedAttempt) { explore_and_print({.slices = 2, .refusals = 1}); }

TEST(Exploration, ThreeSlicesTwoStepsWithTwoFaults) {
  explore_and_print({.coordinator_crashes = 0});
  explore_and_print({.coordinator_crashes = 0, .updates_at_once = true, .late_prepares = true});
  explore_and_print({.evictions = 0});
}

TEST(Exploration, ThreeSlicesTwoStepsWithOneFaultOfEachKind) {
  explore_and_print({.updates_at_once = true});
  if (slow()) explore_and_print({});
}

// The same without one reduction or the other: minutes.
TEST(Exploration, ThreeSlicesTwoStepsLessReduced) {
  if (!slow()) GTEST_SKIP() << "MANIPLE_SLOW=1 explores this one";
  explore_and_print({.updates_at_once = true, .canonical = false});
  explore_and_print({.updates_at_once = true, .late_prepares = true});
}

TEST(Exploration, NoticesEachRuleThatIsBroken) {
  const std::pair<Break, const char*> kExpected[] = {
      {Break::kForgedPrepare, "without an ok PREPARE"},
      {Break::kVoteAfterState, "votes in a stopped epoch"},
      {Break::kStateLagsBehind, "lacks block"},
      {Break::kRecordNotApplied, "lacks block"},
      {Break::kGradientsDropped, "has not kept the gradients"},
      {Break::kReadyWithoutRestore, "without block"},
      {Break::kLogAfterSend, "nothing moves any more"},
      {Break::kStopLost, "nothing moves any more"},
  };
  for (const auto& [broken, expected] : kExpected)
    for (const bool canonical : {true, false}) {
      ExplorationPlan plan{.evictions = 0, .canonical = canonical, .broken = broken};
      try {
        explore(plan);
        ADD_FAILURE() << expected << " is not noticed";
      } catch (const Violation& violation) {
        EXPECT_NE(std::string(violation.what()).find(expected), std::string::npos)
            << violation.what();
      }
    }
}

}  // namespace
}  // namespace maniple::model

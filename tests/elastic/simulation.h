// A whole elastic job in one thread and in simulated time: the real Coordinator and the real
// Memberships, with a network that loses, delays, repeats and reorders, processes that crash, hang
// and freeze, and an operator. Everything is a function of the seed.
#pragma once

#include <cstdint>
#include <string>

#include "core/errors.h"
#include "elastic/reshard.h"

namespace maniple::model {

struct HistoryPlan {
  uint64_t seed = 0;
  bool faults = true;  // false: a fault-free run
  bool trace = false;  // print what happens
};

struct HistoryResult {
  bool done = false;  // all steps; else the job failed since too many slots were banned
  uint64_t epochs = 0;
  uint64_t rollbacks = 0;
  uint64_t commits = 0;  // by vote, over all slices
  uint64_t faults = 0;
  uint64_t coordinator_starts = 0;
  double seconds = 0;  // simulated
};

// Runs one history to its end. Throws Violation when an invariant breaks or the job stands still.
HistoryResult run_history(const HistoryPlan& plan);

}  // namespace maniple::model

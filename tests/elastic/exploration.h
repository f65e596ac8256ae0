// All histories of a small elastic job: every order of messages and host events, a crash, a false
// eviction and a crash of the coordinator at every point (between log and send too). The states are
// those of the real Coordinator and Memberships with the model's blocks and the messages under way;
// beats, rows under way and time are left out, connections keep their order.
//
// Depth-first over the product; a visited state is kept as a 64-bit hash. A PREPARE whose delivery
// makes its receiver do nothing is delivered at once: it commutes with everything (STOP forgets the
// votes), so no outcome is lost.
#pragma once

#include <cstdint>

#include "core/errors.h"
#include "elastic/types.h"

namespace maniple::model {

struct ExplorationPlan {
  uint32_t slices = 2;
  Step steps = 2;
  int crashes = 1, evictions = 1, coordinator_crashes = 1;
  int refusals = 0;             // attempts that fail
  bool updates_at_once = true;  // ApplyUpdate and UpdateDone in one move
  bool canonical = true;        // states that differ in what has no influence are one (canonical.h)
};

struct ExplorationResult {
  uint64_t states = 0, moves = 0, ends = 0, deepest = 0, rollbacks = 0;
};

// Throws Violation, with the moves that lead there, when an invariant breaks or a state that is not
// Done has no move.
ExplorationResult explore(const ExplorationPlan& plan);

}  // namespace maniple::model

// All histories of a small elastic job: every order of messages and host events, a crash, a false
// eviction and a crash of the coordinator at every point (between log and send too). The parts are
// the real Coordinator and Memberships, with the model's blocks and the messages under way.
//
// Left out: beats (but those that follow a new connection), rows under way, broken links, time.
// Connections keep their order, as TCP does; what a crashed end had sent may be lost from any
// message on. (The simulation loses and reorders messages at will.)
//
// A visited state is kept as a fingerprint. Two reductions:
//  - A PREPARE whose delivery makes its receiver do nothing is delivered at once: it commutes with
//    everything (STOP forgets the votes, and the links of an epoch end with it), so no outcome is
//    lost. `late_prepares` does without.
//  - `canonical`: states that differ only in what has no influence on the rest are one
//  (canonical.h),
//    a slice that has ended leaves nothing behind but what it has sent, and the report of its end
//    is heard at once when it is no member any more.
#pragma once

#include <cstdint>

#include "elastic/types.h"
#include "model.h"

namespace maniple::model {

// A rule that the hosts of the state machines break, to see that it is noticed.
enum class Break : uint8_t {
  kNone,
  kForgedPrepare,     // a PREPARE comes in the name of a slice that has not sent it
  kVoteAfterState,    // a slice answers STOP with STATE and goes on
  kStateLagsBehind,   // STATE says 0 for the last commit
  kRecordNotApplied,  // the update that a record finishes is left out
  kGradientsDropped,  // at STOP
  kReadyWithoutRestore,
  kLogAfterSend,  // a crash loses what was logged for the event at hand
  kStopLost,      // on its way to slice 0
};

struct ExplorationPlan {
  uint32_t slices = 3;
  Step steps = 2;
  int crashes = 1, evictions = 1, coordinator_crashes = 1;
  int refusals = 0;              // attempts that fail
  bool updates_at_once = false;  // ApplyUpdate and UpdateDone in one move
  bool late_prepares = false;    // they may come at any time, in later epochs too
  bool canonical = true;
  Break broken = Break::kNone;
};

struct ExplorationResult {
  uint64_t states = 0, moves = 0, ends = 0, deepest = 0, rollbacks = 0;
};

// Throws Violation, with the moves that lead there, when an invariant breaks or a state that is not
// Done has no move. MANIPLE_TRACE=1 shows the progress on standard error.
ExplorationResult explore(const ExplorationPlan& plan);

}  // namespace maniple::model

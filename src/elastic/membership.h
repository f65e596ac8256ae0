// A slice's part in the protocol: what its leader's control thread and its vote do (spec/elastic.md
// section 4). A pure state machine without torch: events in, actions for the host out. The host is
// the trainer in a job, and the simulation in tests; both drive this code.
//
// The caller serialises on(): one lock guards the vote and the answer to STOP, so a slice either
// commits before its STATE says so or not at all.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/errors.h"
#include "elastic/messages.h"

namespace maniple {

struct MembershipConfig {
  SliceId slice = 0;
  Life life = 0;
  Step last_step = 1;
  uint32_t max_attempts = 8;  // of one step in one epoch; then the slice leaves with exit code 80
  Register registration;
};

// --- Events --------------------------------------------------------------------------------------

struct FromCoordinator {
  Envelope envelope;
};
// A connection to the coordinator was established (anew).
struct Connected {};
// A PREPARE from another member, over its link.
struct FromPeer {
  Prepare prepare;
};
struct LinkBroken {
  EpochNumber epoch = 0;
  SliceId peer = 0;
};
// StartAttempt is done: the reduced gradients are there, or the attempt is poisoned.
struct AttemptDone {
  EpochNumber epoch = 0;
  Step step = 0;
  uint32_t attempt = 0;
  AttemptReport report;
};
// ApplyUpdate is done; the step's metric row (empty bytes: nothing to write for this step).
struct UpdateDone {
  MetricRow row;
};
// Restore is done, or this slice cannot do it. `row`: of step K, which every member can make from
// the decision record and the sums that are copied with the blocks; none without a record.
struct RestoreDone {
  EpochNumber epoch = 0;
  bool ok = true;
  std::string reason;
  std::optional<MetricRow> row;
};
// The slices have come to a verdict about a suspicious step; one of them says so.
struct Judged {
  SdcFinding finding;
};
// All ranks of the slice have written their parts of a checkpoint taken in `epoch`.
struct PartWritten {
  CheckpointPart part;
};
using MembershipEvent = std::variant<FromCoordinator, Connected, FromPeer, LinkBroken, AttemptDone,
                                     UpdateDone, RestoreDone, Judged, PartWritten>;

// --- Actions, in their order ---------------------------------------------------------------------

struct ToCoordinator {
  Envelope envelope;
};
// To all other members over the links of its epoch. A link that cannot deliver it is broken.
struct ToPeers {
  Prepare prepare;
};
// Compute, exchange and reduce the step; keep the reduced gradients; answer AttemptDone.
struct StartAttempt {
  EpochNumber epoch = 0;
  Step step = 0;
  uint32_t attempt = 0;
  uint32_t execution = 0;  // complete ones of this step in this epoch that were found suspicious
};
// The step is committed: update the held blocks from the kept gradients and the record (nothing for
// a skip), publish parameters, answer UpdateDone. The work on the blocks is local and is completed
// whatever comes; publishing is given up on Halt, since Restore gathers the parameters again.
struct ApplyUpdate {
  DecisionRecord record;
};
// Nothing is decided in the epoch any more. State and kept gradients stay.
struct Halt {
  EpochNumber epoch = 0;
  // Give up the attempt or Restore under way, end the waits on its links. Else the epoch stops at
  // the boundary that all agreed on: its links are left alone, since others may still be reading.
  bool at_once = true;
  bool save = false;  // write a checkpoint of the last commit; answer PartWritten
};
// Bring the slice to step decision.committed: complete an update under way, or (fresh) forget all
// state and load the checkpoint if the decision says so; copy blocks (plan_copies), gather
// parameters, compare fingerprints. Answer RestoreDone. Nothing that was held is deleted.
struct Restore {
  EpochDecision decision;
  bool fresh = false;
};
// RUN: copies of earlier placements and kept gradients may go.
struct DropOldCopies {
  EpochNumber epoch = 0;
};
// The step can never be undone by a lost slice: it may be reported and its checkpoint published.
struct Stable {
  Step step = 0;
};
// End the slice's processes.
struct Leave {
  int32_t code = 0;
  std::string reason;
};
using MembershipAction = std::variant<ToCoordinator, ToPeers, StartAttempt, ApplyUpdate, Halt,
                                      Restore, DropOldCopies, Stable, Leave>;

class Membership {
 public:
  explicit Membership(const MembershipConfig& config);

  std::vector<MembershipAction> on(const MembershipEvent& event);

  SliceStatus status() const;
  // The member whose PREPARE the vote lacks (the lowest), for the beats.
  std::optional<SliceId> waits_for() const;
  Step committed() const { return committed_; }
  Step stable() const { return stable_; }
  // The EPOCH accepted last; its number is 0 before the first.
  const EpochDecision& decision() const { return decision_; }

  // The whole changing state, for hashing.
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.incarnation_, s.phase_, s.stage_, s.decision_, s.stopped_, s.lineage_, s.committed_,
      s.stable_, s.record_, s.holds_, s.attempt_, s.execution_, s.prepared_, s.stop_after_, s.save_, s.open_rows_,
      s.broken_, s.votes_);
  }

 private:
  enum class Stage : uint8_t {
    kIdle,
    kComputing,  // step committed_ + 1
    kVoting,     // own PREPARE of it is out
    kUpdating,   // step committed_
  };
  struct VoteKey {
    Step step = 0;
    uint32_t attempt = 0;
    SliceId slice = 0;
    auto operator<=>(const VoteKey&) const = default;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.step, s.attempt, s.slice);
    }
  };

  void receive(const Envelope& envelope);
  void receive_stop(EpochNumber epoch, const Stop& stop);
  void receive_epoch(const EpochDecision& decision);
  void receive_run(EpochNumber epoch);
  void receive_prepare(const Prepare& prepare);
  void restored(const RestoreDone& done);
  void say_again();
  void begin_step();
  void start_attempt(uint32_t attempt, uint32_t execution);
  void count_votes();
  void commit(const std::vector<Prepare>& prepares, Outcome outcome);
  void note_stable(Step step);
  void stop_now(EpochNumber epoch, bool at_once);
  void leave(ExitCode code, const std::string& reason);
  void keep_row(const MetricRow& row);
  void send_rows();
  // The PREPAREs of all members for one attempt; empty while one is missing.
  std::vector<Prepare> full_set(Step step, uint32_t attempt) const;
  bool prepared_by_all(Step step) const;
  void send(EpochNumber epoch, const Message& message);
  void send_state();
  EpochNumber reached() const { return std::max(decision_.number, stopped_); }

  MembershipConfig config_;
  Incarnation incarnation_ = 0;
  SlicePhase phase_ = SlicePhase::kWaiting;
  Stage stage_ = Stage::kIdle;
  EpochDecision decision_;
  EpochNumber stopped_ = 0;  // highest STOP answered
  EpochNumber lineage_ = 0;
  Step committed_ = 0, stable_ = 0;
  std::optional<DecisionRecord> record_;  // of committed_
  std::vector<EpochNumber> holds_;        // epochs whose placement is held whole at committed_
  uint32_t attempt_ = 0, execution_ = 0;
  std::optional<Prepare> prepared_;  // own, of committed_ + 1, not taken back by anything
  std::optional<Step> stop_after_;
  bool save_ = false;  // when it stops there
  std::vector<MetricRow> open_rows_;
  std::vector<SliceId> broken_;       // links of this epoch
  std::map<VoteKey, Prepare> votes_;  // of this epoch
  std::vector<MembershipAction> actions_;
};

}  // namespace maniple

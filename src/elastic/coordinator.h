// The coordinator of an elastic job: who is a member, when training stops and goes on, from which
// step. A pure state machine: events and the time in, actions out. No sockets, clocks, threads or
// files; a shell provides them. Copyable, so that a state can be explored.
//
//   Forming ──► Restoring ──► Running ──► Finishing ──► Done
//                  ▲             │ planned change: Stopping
//                  │             ▼
//                  └──────── Collecting ──► Paused (──► Restoring)          Failed, from anywhere
//
// docs/elastic.md explains the states and the rules. What must survive a crash is in History and
// changes only together with an Append; everything else is learnt again from the slices.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "elastic/coordinator_io.h"
#include "elastic/epoch_rules.h"
#include "elastic/hangs.h"
#include "elastic/links.h"
#include "elastic/rows.h"
#include "elastic/stragglers.h"

namespace maniple {

enum class CoordinatorPhase : uint8_t {
  kForming,     // waits for the declared slices
  kRunning,     // the members train; nothing to do
  kStopping,    // STOP(e, after k) is out: the members train up to k
  kCollecting,  // waits for each member's STATE, exit report or lost lease
  kRestoring,   // EPOCH(e) is out, waits for READY of all
  kPaused,      // settled at K, too few slices or on hold
  kFinishing,   // some members have committed the last step
  kDone,
  kFailed,
};
const char* phase_name(CoordinatorPhase phase);

class Coordinator {
 public:
  // Continues `history` (empty: a new job). `rows_written`: last step in metrics.jsonl.
  Coordinator(const CoordinatorConfig& config, const History& history, Step rows_written);

  // The first actions; called once, before any event. Every member gets a fresh lease.
  std::vector<CoordinatorAction> start(Time now);

  // `now` never decreases. A call that comes more than Timeouts::late() after the one before means
  // that this process was held up: nobody loses his lease by it.
  std::vector<CoordinatorAction> on(const CoordinatorEvent& event, Time now);

  CoordinatorPhase phase() const { return phase_; }
  const History& history() const { return history_; }
  Step rows_written() const { return rows_.written(); }
  // One line per fact, for people.
  std::string status_text() const;

  // The whole changing state, for hashing.
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.history_, s.phase_, s.slots_, s.answers_, s.finished_, s.rows_, s.links_, s.parts_,
      s.stragglers_, s.build_.lo, s.build_.hi, s.cause_, s.stop_after_, s.max_step_, s.phase_since_,
      s.planned_at_, s.stopped_at_);
    f(static_cast<uint64_t>(s.ready_.size()));
    for (const SliceId slice : s.ready_) f(slice);
    for (const auto& [a, b] : s.broken_) f(a, b);
  }

 private:
  enum class Stage : uint8_t {
    kIdle,      // no life, as far as is known
    kLaunched,  // ordered to start, not yet registered
    kWaiting,   // registered
    kMember,    // of the current epoch
    kDoomed,    // ordered to end, exit not yet reported
  };
  struct Slot {
    Stage stage = Stage::kIdle;
    uint64_t agent = 0;      // the process heard of last; 0: none since this coordinator started
    bool blameless = false;  // doomed without a fault of its own
    bool suspected = false;  // silence was noted
    uint32_t failures = 0;   // in a row
    Time launch_at = 0, launched_at = 0, heard_at = 0, nudged_at = 0;
    uint64_t host = 0;
    Time unit_time = 0;  // of its last steps; 0: not known
    std::optional<Register> registration;
    ProgressWatch watch;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.stage, s.agent, s.blameless, s.suspected, s.failures, s.launch_at, s.launched_at,
        s.heard_at, s.nudged_at, s.host, s.unit_time, s.registration, s.watch);
    }
  };
  struct Part {
    SliceId slice = 0;
    CheckpointPart part;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.slice, s.part);
    }
  };

  // coordinator.cpp: what comes in.
  void receive(const Envelope& envelope);
  void receive_agent_hello(SliceId slice, const AgentHello& hello);
  void receive_beat(SliceId slice, const Beat& beat);
  void receive_register(SliceId slice, const Register& registration);
  void receive_from_member(const Envelope& envelope);
  void receive_rows(SliceId slice, const std::vector<MetricRow>& rows, Step limit);
  void receive_part(SliceId slice, const CheckpointPart& part);
  void receive_finding(const SdcFinding& sdc);
  void publish_complete_checkpoint();
  void verify_checkpoints();
  void nudge(SliceId slice, const SliceStatus& status);

  // coordinator_slots.cpp: lives, leases, launches.
  void grant_leases();
  void expire_leases();
  void check_hangs();
  void note_stragglers();
  void dying(SliceId slice, const std::string& reason);
  void ended(SliceId slice, int32_t code, const std::string& reason);
  void lose_member(SliceId slice, const std::string& reason);
  void doom(SliceId slice, const std::string& reason, bool blameless);
  void strike(SliceId slice, const std::string& reason);
  void ban(SliceId slice, int32_t code, const std::string& reason);
  void launch_due();
  void inherit();
  void launch(SliceId slice);
  void fail_if_hopeless();

  // coordinator_epochs.cpp: from one epoch to the next.
  void advance();
  bool advance_once();
  std::string planned_change() const;
  bool drain_is_safe() const;
  void stop_after(Step step, const std::string& cause);
  void stop_at_once(const std::string& cause);
  bool all_accounted() const;
  bool may_form() const;
  bool is_barred(SliceId slice) const;  // banned or drained: it may not come
  std::vector<Candidate> survivors() const;
  std::vector<Candidate> newcomers(size_t room) const;
  void choose_build();
  void decide();
  void pause(const std::string& cause);
  void write_settled_rows(Step committed);
  void drop_rows();
  void open_epoch(EpochDecision decision);
  void run();
  void end(const Verdict& verdict);

  // coordinator_control.cpp
  void operate(const Control& control);

  bool is_member(SliceId slice) const { return slots_.contains(slice) && slots_.at(slice).stage == Stage::kMember; }
  Life life_of(SliceId slice) const;
  uint32_t target() const { return history_.target ? history_.target : config_.slices; }
  void set_phase(CoordinatorPhase phase);
  void append(const LogRecord& record);
  void send(SliceId slice, const Message& message);
  void send_members(const Message& message);
  void note(const std::string& event, const std::string& text);

  CoordinatorConfig config_;
  History history_;
  CoordinatorPhase phase_ = CoordinatorPhase::kForming;
  std::map<SliceId, Slot> slots_;
  std::map<SliceId, State> answers_;              // STATEs of the current epoch
  std::map<SliceId, std::vector<MetricRow>> finished_;  // members that have said so, with open rows
  std::set<SliceId> ready_;
  std::set<SlicePair> broken_;  // links reported broken in this epoch
  RowBook rows_;
  LinkBook links_;
  StragglerWatch stragglers_;
  std::vector<Part> parts_;
  Fingerprint build_;
  std::string cause_;               // of the change under way
  std::optional<Step> stop_after_;  // of a planned change
  Step max_step_ = 0;               // highest commit heard of in this epoch
  Time phase_since_ = 0, now_ = 0;
  std::optional<Time> stopped_at_;  // when STOP was sent that no RUN has followed
  std::optional<Time> planned_at_;  // when a slice was last admitted or the job shrank, by plan
  std::vector<CoordinatorAction> actions_;
};

template <>
struct EnumLast<CoordinatorPhase> {
  static constexpr CoordinatorPhase value = CoordinatorPhase::kFailed;
};

}  // namespace maniple

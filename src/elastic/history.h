// What the coordinator must not forget: the log's records and the state that they add up to.
// The running coordinator changes this state only by appending a record and applying it, so a
// restart that applies the log's records has exactly the same state.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "elastic/epoch.h"
#include "elastic/messages.h"
#include "elastic/types.h"

namespace maniple {

// The coordinator has started.
struct StartedRecord {
  Incarnation incarnation = 0;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.incarnation);
  }
};

struct EpochRecord {
  EpochDecision decision;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.decision);
  }
};

// Training of the last epoch has ended without a next one yet; step `committed` is settled.
struct PausedRecord {
  Step committed = 0;
  std::optional<DecisionRecord> record;
  std::string cause;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.committed, s.record, s.cause);
  }
};

struct LaunchRecord {
  SliceId slice = 0;
  Life life = 0;
  uint32_t failures = 0;  // in a row, before this launch
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.slice, s.life, s.failures);
  }
};

// Whether a slot may be used, with the exit code that spoke against it.
struct SlotRecord {
  SliceId slice = 0;
  bool banned = false, drained = false;
  int32_t code = 0;
  std::string reason;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.slice, s.banned, s.drained, s.code, s.reason);
  }
};

// The slice gave a wrong result; too many of them bar its slot.
struct StrikeRecord {
  SliceId slice = 0;
  std::string reason;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.slice, s.reason);
  }
};

// A slice computed wrongly for nobody knows how long: the next epoch goes back to the last checkpoint
// that is verified.
struct SuspectRecord {
  Step step = 0;
  std::string reason;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.reason);
  }
};

// The canaries since the checkpoint of this step have found nothing.
struct VerifiedRecord {
  Step step = 0;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step);
  }
};

// What the operator wants.
struct WishRecord {
  uint32_t target = 0;  // number of members
  bool hold = false;    // pause
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.target, s.hold);
  }
};

// The checkpoint of this step is complete, verified and stable.
struct PublishedRecord {
  Step step = 0;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step);
  }
};

// The rows after the step that the last EPOCH went back to are removed. Until then a restart
// removes them again.
struct RowsDroppedRecord {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};

struct VerdictRecord {
  Verdict verdict;
  std::vector<MetricRow> rows;  // of the last step, which only this record makes stable
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.verdict, s.rows);
  }
};

using LogRecord = std::variant<StartedRecord, EpochRecord, PausedRecord, LaunchRecord, SlotRecord,
                               WishRecord, PublishedRecord, RowsDroppedRecord, VerdictRecord, StrikeRecord,
                               SuspectRecord, VerifiedRecord>;

struct SlotHistory {
  Life life = 0;  // last one launched
  uint32_t failures = 0;
  uint32_t strikes = 0;  // since it was readmitted last
  bool banned = false, drained = false;
  int32_t code = 0;  // of the ban
  bool burn_in = false;  // readmitted after it computed wrongly, and not a member since
  Step watched = 0;      // on probation up to this step
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.life, s.failures, s.strikes, s.banned, s.drained, s.code, s.burn_in, s.watched);
  }
};

struct History {
  Incarnation incarnation = 0;
  std::optional<EpochDecision> epoch;  // the last
  std::vector<PastEpoch> past;         // whose placements may still be held, the last included
  Step committed = 0;                  // K of the last EPOCH or pause; falls only by a rollback
  std::optional<DecisionRecord> record;
  bool paused = false;        // the last epoch was stopped and settled
  bool rows_to_drop = false;  // of a rollback
  Step published = 0;         // newest checkpoint; 0: the initial state
  Step verified = 0;          // newest that is verified; 0: the initial state
  std::vector<Step> unverified;  // published after it
  bool suspect = false;       // the next epoch loads `verified`
  uint32_t target = 0;
  bool hold = false;
  std::map<SliceId, SlotHistory> slots;
  std::optional<Verdict> verdict;
  std::vector<MetricRow> last_rows;  // that came with the verdict

  void apply(const LogRecord& record);
  // Number of the last epoch, 0 before the first.
  EpochNumber number() const { return epoch ? epoch->number : 0; }
  const PastEpoch* find_past(EpochNumber number) const;

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.incarnation, s.epoch, s.past, s.committed, s.record, s.paused, s.rows_to_drop, s.published, s.verified, s.unverified, s.suspect,
      s.target, s.hold, s.slots, s.verdict, s.last_rows);
  }
};

// Bytes of a record and back (the payload of a frame of the log).
std::string encode_record(const LogRecord& record);
std::optional<LogRecord> decode_record(std::string_view payload);

}  // namespace maniple

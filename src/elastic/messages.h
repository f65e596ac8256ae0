// Messages of an elastic job, one struct each, and their encoding (docs/elastic.md lists who sends
// what). Plain values; encode_message and decode_message are the only way onto and off the wire.
// Every message is legal to lose, repeat, delay or reorder: receivers judge it by its epoch and by
// the sender's life.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "elastic/epoch.h"
#include "elastic/types.h"
#include "elastic/vote.h"

namespace maniple {

// --- From agents -------------------------------------------------------------------------------

// The agent of a slot is there; sent on connecting and, while it runs no slice, again and again. An
// agent that has not started, or does not run any more, what it was told to start reports the end
// of that life.
struct AgentHello {
  uint64_t agent = 0;  // differs for each process that is an agent
  uint64_t host = 0;
  Life life = 0;       // last one started by this agent; 0: none
  bool alive = false;  // its processes
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.agent, s.host, s.life, s.alive);
  }
};

// What a slice's slowest rank is doing.
struct SliceProgress {
  uint64_t count = 0;  // taken by the training thread; grows with everything it finishes
  std::optional<SliceId> waits_for;
  uint64_t unit_us = 0;  // time of a unit in the last steps; 0: not known
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.count, s.waits_for, s.unit_us);
  }
};

// Renews the lease of a slice, with the minimum over its ranks.
struct Beat {
  SliceStatus status;
  SliceProgress progress;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.status, s.progress);
  }
};

// A life cannot go on: a process of it has died, and the others are being ended. Exited follows when
// none is left, which takes a while on busy processors.
struct Dying {
  std::string reason;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.reason);
  }
};

// The processes of a life have ended.
struct Exited {
  int32_t code = 0;    // of its mpirun; 128 + signal when killed by one
  std::string reason;  // what a rank said before; may be empty
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.code, s.reason);
  }
};

// --- From the leaders of slices ----------------------------------------------------------------

// "I can become a member": sent until an EPOCH or a Dismiss answers.
struct Register {
  Fingerprint build;  // program, libraries, hardware, gradients of the probe unit
  uint64_t config_hash = 0;
  uint64_t host = 0;
  std::string address;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.build.lo, s.build.hi, s.config_hash, s.host, s.address);
  }
};

struct MetricRow {
  Step step = 0;
  std::string bytes;
  bool operator==(const MetricRow&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.bytes);
  }
};

// The answer to STOP(e), e being the epoch of the header. From then on the slice decides nothing
// in e.
struct State {
  EpochNumber lineage = 0;
  Step committed = 0;
  std::optional<DecisionRecord> record;  // of `committed`
  std::optional<Prepare> prepared;       // own PREPARE whose reduced gradients are kept
  std::vector<EpochNumber> holds;        // placements held whole at `committed`
  std::vector<MetricRow> open_rows;            // not acknowledged
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.lineage, s.committed, s.record, s.prepared, s.holds, s.open_rows);
  }
};

// Restore of the header's epoch is done, or cannot be done by this slice. The rows up to K are
// written before RUN, so that none depends on a slice that trains on.
struct Ready {
  bool ok = true;
  std::string reason;
  std::vector<MetricRow> open_rows;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.ok, s.reason, s.open_rows);
  }
};

struct BrokenLink {
  SliceId peer = 0;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.peer);
  }
};

// Rows of stable steps, oldest first.
struct Rows {
  std::vector<MetricRow> rows;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.rows);
  }
};

// The slice has committed the last step and has done all its work.
struct Finished {
  std::vector<MetricRow> open_rows;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.open_rows);
  }
};

// The slice has written its part of the checkpoint of `step`.
struct CheckpointPart {
  Step step = 0;
  EpochNumber epoch = 0;  // whose members wrote the parts
  std::string manifest;   // its part of the manifest, for the coordinator's shell
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.epoch, s.manifest);
  }
};

// What replaying a suspicious step has shown (elastic/replay.h), said by the first member that is
// not blamed.
struct SdcFinding {
  Step step = 0;
  std::string finding, text;
  std::vector<SliceId> strikes;     // slices that gave a wrong result once
  std::vector<SliceId> quarantine;  // those that are not to be used any more
  bool suspect = false;             // earlier steps may be wrong too
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.finding, s.text, s.strikes, s.quarantine, s.suspect);
  }
};

// --- From the coordinator ----------------------------------------------------------------------

// To an agent: start the life of the header. It kills what it runs of earlier lives first.
struct Launch {
  bool burn_in = false;  // the slice was quarantined: it is to prove that it computes rightly
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.burn_in);
  }
};

// To an agent: kill the life of the header and all its processes, then report the exit.
struct Kill {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};

// Stop the epoch of the header: at once, or after committing `after`. Answered by State. `save`: the
// job pauses there, so the state is to be kept in a checkpoint.
struct Stop {
  std::optional<Step> after;
  bool save = false;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.after, s.save);
  }
};

struct Epoch {
  EpochDecision decision;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.decision);
  }
};

// All members of the header's epoch are ready: train.
struct Run {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};

struct RowsAck {
  Step step = 0;  // rows up to this one are on disk
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step);
  }
};

// "Say again where you are": answered like a new connection.
struct Query {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};

// This life has no further part in the job.
struct Dismiss {
  std::string reason;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.reason);
  }
};

// The end of the job: leave with this code. 0: done, and `committed` is stable.
struct Verdict {
  int32_t code = 0;
  Step committed = 0;
  std::string reason;
  bool operator==(const Verdict&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.code, s.committed, s.reason);
  }
};

// --- An operator's requests (`maniple ctl`) and their answers ------------------------------------

enum class Command : uint8_t { kStatus, kDrain, kPause, kResume, kScale, kReadmit };
template <>
struct EnumLast<Command> {
  static constexpr Command value = Command::kReadmit;
};

struct Control {
  uint64_t request = 0;  // chosen by the client, repeated in the answer
  Command command = Command::kStatus;
  uint32_t argument = 0;  // drain, readmit: a slice; scale: a number of slices
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.request, s.command, s.argument);
  }
};

struct ControlReply {
  uint64_t request = 0;
  bool ok = true;
  std::string text;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.request, s.ok, s.text);
  }
};

using Message = std::variant<AgentHello, Beat, Dying, Exited, Register, State, Ready, BrokenLink, Rows,
                             Finished, CheckpointPart, SdcFinding, Launch, Kill, Stop, Epoch, Run,
                             RowsAck, Query, Dismiss, Verdict, Control, ControlReply, Prepare>;

// A message with what every message carries. `slice` and `life` name the slice that the message
// comes from or goes to.
struct Envelope {
  Incarnation incarnation = 0;  // from a slice: the highest it has seen
  EpochNumber epoch = 0;
  SliceId slice = 0;
  Life life = 0;
  Message message;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.incarnation, s.epoch, s.slice, s.life, s.message);
  }
};

// "State", "Stop", ...
const char* message_name(const Message& message);

// One frame (elastic/wire.h).
std::string encode_message(const Envelope& envelope);
// The payload of a frame. Anything but exactly one message: nullopt.
std::optional<Envelope> decode_message(std::string_view payload);

}  // namespace maniple

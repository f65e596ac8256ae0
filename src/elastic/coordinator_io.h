// What goes into the coordinator and what comes out.
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "elastic/history.h"
#include "elastic/messages.h"
#include "elastic/reshard.h"
#include "elastic/timeouts.h"

namespace maniple {

struct CoordinatorConfig {
  uint32_t slices = 1;      // declared members; epoch 1 waits for them
  uint32_t spares = 0;      // slots beyond, launched and kept waiting
  uint32_t min_slices = 1;  // below it the job pauses
  Step last_step = 1;
  // What the job inherits: the checkpoint that it begins with (0: none), the newest verified one, and
  // slots whose device was quarantined or has given wrong results, and how many.
  Step first = 0, first_verified = 0;
  std::vector<SliceId> burn_in;
  std::map<SliceId, uint32_t> strikes;
  BlockLayout layout;
  uint32_t max_restarts = 5;  // failures in a row before a slot is banned
  uint32_t max_strikes = 3;   // wrong results of a slot before it is banned
  Step probation = 0;         // steps of it after a quarantine
  Step verify_after = 0;      // clean steps after which a checkpoint is verified
  uint64_t config_hash = 0;   // of what all slices must have in common
  Timeouts timeouts;

  uint32_t num_slots() const { return slices + spares; }
};

// --- Events ----------------------------------------------------------------------------------

// A message of an agent or a slice. The shell has checked the job token.
struct Received {
  Envelope envelope;
};
// Time has passed; due every Timeouts::tick(). What sockets hold is delivered first.
struct Tick {};
// The launcher knows of the death of an agent; what that had started is being ended.
struct SliceDying {
  SliceId slice = 0;
  Life life = 0;
  std::string reason;
};
// As Exited, from the launcher: an agent and everything that it had started are gone.
struct SliceLost {
  SliceId slice = 0;
  Life life = 0;
  std::string reason;
};
// The shell has published what PublishCheckpoint asked for: files, manifest and `latest` are
// durable.
struct CheckpointPublished {
  Step step = 0;
};
// An operator's request; answered by exactly one Reply.
struct OperatorRequest {
  Control control;
};
using CoordinatorEvent =
    std::variant<Received, Tick, SliceDying, SliceLost, CheckpointPublished, OperatorRequest>;

// --- Actions, to be carried out in their order -------------------------------------------------

// Append to the decision log. Durable before the next action begins.
struct Append {
  LogRecord record;
};
// To the slice of the envelope. Launch, Kill, Stop and Verdict go to its agent, which passes Stop
// and Verdict to every rank; the others go to its leader. Not connected: drop it.
struct Send {
  Envelope envelope;
};
struct Reply {
  ControlReply reply;
};
// Append a row to metrics.jsonl.
struct WriteRow {
  MetricRow row;
};
// Remove the rows after this step, and the checkpoints: a rollback.
struct DropRows {
  Step after = 0;
};
// All parts of the checkpoint are written and the step is stable.
struct PublishCheckpoint {
  Step step = 0;
  std::vector<std::string> parts;  // by slice
  Step keep_from = 0;  // checkpoints from this step on must stay, whatever their number
};
// For events.jsonl and people.
struct Note {
  std::string event, text;
};
using CoordinatorAction =
    std::variant<Append, Send, Reply, WriteRow, DropRows, PublishCheckpoint, Note>;

}  // namespace maniple

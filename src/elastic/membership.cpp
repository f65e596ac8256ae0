#include "elastic/membership.h"

#include <algorithm>

namespace maniple {

Membership::Membership(const MembershipConfig& config) : config_(config) {}

std::vector<MembershipAction> Membership::on(const MembershipEvent& event) {
  actions_.clear();
  if (phase_ == SlicePhase::kLeft) return {};
  if (const auto* from = std::get_if<FromCoordinator>(&event)) {
    receive(from->envelope);
  } else if (std::holds_alternative<Connected>(event)) {
    say_again();
  } else if (const auto* peer = std::get_if<FromPeer>(&event)) {
    receive_prepare(peer->prepare);
  } else if (const auto* link = std::get_if<LinkBroken>(&event)) {
    const bool fresh = std::find(broken_.begin(), broken_.end(), link->peer) == broken_.end();
    if (link->epoch == decision_.number && phase_ != SlicePhase::kStopped && fresh) {
      broken_.push_back(link->peer);
      send(decision_.number, BrokenLink{link->peer});
    }
  } else if (const auto* done = std::get_if<AttemptDone>(&event)) {
    const bool awaited = phase_ == SlicePhase::kRunning && stage_ == Stage::kComputing &&
                         done->epoch == decision_.number && done->step == committed_ + 1 &&
                         done->attempt == attempt_;
    if (awaited) {
      stage_ = Stage::kVoting;
      prepared_ = Prepare{decision_.incarnation, decision_.number, done->step,
                          done->attempt,         config_.slice,    done->report};
      actions_.push_back(ToPeers{*prepared_});
      receive_prepare(*prepared_);
    }
  } else if (const auto* update = std::get_if<UpdateDone>(&event)) {
    if (update->row.step <= committed_) keep_row(update->row);
    if (stage_ == Stage::kUpdating && update->row.step == committed_) {
      stage_ = Stage::kIdle;
      if (phase_ == SlicePhase::kRunning) begin_step();
    }
  } else if (const auto* restored_event = std::get_if<RestoreDone>(&event)) {
    restored(*restored_event);
  } else if (const auto* judged = std::get_if<Judged>(&event)) {
    send(decision_.number, judged->finding);
  } else if (const auto* part = std::get_if<PartWritten>(&event)) {
    send(decision_.number, part->part);
  }
  return std::move(actions_);
}

void Membership::receive(const Envelope& e) {
  if (e.slice != config_.slice || e.life != config_.life || e.incarnation < incarnation_) return;
  incarnation_ = e.incarnation;
  if (const auto* stop = std::get_if<Stop>(&e.message)) {
    receive_stop(e.epoch, *stop);
  } else if (const auto* epoch = std::get_if<Epoch>(&e.message)) {
    receive_epoch(epoch->decision);
  } else if (std::holds_alternative<Run>(e.message)) {
    receive_run(e.epoch);
  } else if (const auto* ack = std::get_if<RowsAck>(&e.message)) {
    // One that was sent before a rollback speaks of rows that do not count any more.
    if (e.epoch >= lineage_)
      std::erase_if(open_rows_, [&](const MetricRow& row) { return row.step <= ack->step; });
  } else if (std::holds_alternative<Query>(e.message)) {
    say_again();
  } else if (const auto* dismiss = std::get_if<Dismiss>(&e.message)) {
    leave(ExitCode::kPreempted, dismiss->reason);
  } else if (const auto* verdict = std::get_if<Verdict>(&e.message)) {
    if (verdict->code == 0 && verdict->committed == committed_) note_stable(committed_);
    leave(static_cast<ExitCode>(verdict->code), verdict->reason);
  }
}

void Membership::receive_stop(EpochNumber epoch, const Stop& stop) {
  if (epoch < reached() || epoch == 0) return;
  if (epoch == stopped_) return send_state();
  const bool trains = phase_ == SlicePhase::kRunning && epoch == decision_.number;
  // An update under way belongs to committed_, and its row is worth waiting for.
  const bool before_the_end =
      stop.after &&
      (committed_ < *stop.after || (committed_ == *stop.after && stage_ == Stage::kUpdating));
  save_ = stop.save;
  if (trains && before_the_end)
    stop_after_ = stop.after;
  else
    stop_now(epoch, true);
}

// From here on nothing is decided in `epoch`.
void Membership::stop_now(EpochNumber epoch, bool at_once) {
  phase_ = SlicePhase::kStopped;
  stopped_ = epoch;
  stop_after_.reset();
  votes_.clear();
  if (stage_ != Stage::kUpdating) stage_ = Stage::kIdle;
  actions_.push_back(Halt{epoch, at_once, save_ && !at_once});
  send_state();
}

void Membership::receive_epoch(const EpochDecision& d) {
  const bool again = d.number == decision_.number && d.number > stopped_;
  if (again && phase_ == SlicePhase::kReady) send(d.number, Ready{true, {}, open_rows_});
  const bool expected = phase_ == SlicePhase::kWaiting || phase_ == SlicePhase::kStopped;
  const int me = d.index_of(config_.slice);
  if (!expected || d.number <= reached() || !d.has(config_.slice, config_.life)) return;

  const bool fresh = d.holds[static_cast<size_t>(me)].empty();
  if (fresh) {
    stage_ = Stage::kIdle;  // an update under way is dropped with the state that it belongs to
  } else if (committed_ < d.committed) {
    stage_ = Stage::kUpdating;
    actions_.push_back(ApplyUpdate{*d.record});
  }
  decision_ = d;
  lineage_ = d.lineage;
  committed_ = d.committed;
  record_ = d.record;
  holds_ = d.holds[static_cast<size_t>(me)];
  prepared_.reset();
  broken_.clear();
  votes_.clear();
  attempt_ = execution_ = 0;
  std::erase_if(open_rows_, [&](const MetricRow& row) { return row.step > committed_; });
  stable_ = committed_;
  actions_.push_back(Stable{stable_});
  phase_ = SlicePhase::kRestoring;
  actions_.push_back(Restore{d, fresh});
}

void Membership::restored(const RestoreDone& done) {
  if (phase_ != SlicePhase::kRestoring || done.epoch != decision_.number) return;
  if (!done.ok) {
    send(decision_.number, Ready{false, done.reason, {}});
    return leave(ExitCode::kComm, done.reason);
  }
  if (done.row && done.row->step == committed_) keep_row(*done.row);
  holds_.push_back(decision_.number);
  phase_ = SlicePhase::kReady;
  send(decision_.number, Ready{true, {}, open_rows_});
}

void Membership::receive_run(EpochNumber epoch) {
  if (phase_ != SlicePhase::kReady || epoch != decision_.number) return;
  holds_ = {epoch};
  phase_ = SlicePhase::kRunning;
  stage_ = Stage::kIdle;
  actions_.push_back(DropOldCopies{epoch});
  begin_step();
}

// What the coordinator needs to hear after a lost connection or message.
void Membership::say_again() {
  if (phase_ == SlicePhase::kWaiting) return send(reached(), config_.registration);
  send(decision_.number, Beat{status(), {}});
  if (phase_ == SlicePhase::kStopped) send_state();
  if (phase_ == SlicePhase::kReady) send(decision_.number, Ready{true, {}, open_rows_});
  if (phase_ == SlicePhase::kFinished) send(decision_.number, Finished{open_rows_});
  if (phase_ == SlicePhase::kRunning) send_rows();
  if (phase_ != SlicePhase::kStopped)
    for (const SliceId peer : broken_) send(decision_.number, BrokenLink{peer});
}

void Membership::leave(ExitCode code, const std::string& reason) {
  phase_ = SlicePhase::kLeft;
  actions_.push_back(Leave{static_cast<int32_t>(code), reason});
}

SliceStatus Membership::status() const { return {phase_, reached(), committed_}; }

void Membership::keep_row(const MetricRow& row) {
  const auto at = std::lower_bound(open_rows_.begin(), open_rows_.end(), row.step,
                                   [](const MetricRow& r, Step step) { return r.step < step; });
  if (at == open_rows_.end() || at->step != row.step) open_rows_.insert(at, row);
}

// Stable rows that nobody has acknowledged.
void Membership::send_rows() {
  Rows rows;
  for (const MetricRow& row : open_rows_)
    if (row.step <= stable_) rows.rows.push_back(row);
  if (!rows.rows.empty()) send(decision_.number, rows);
}

void Membership::send(EpochNumber epoch, const Message& message) {
  actions_.push_back(ToCoordinator{{incarnation_, epoch, config_.slice, config_.life, message}});
}

void Membership::send_state() {
  send(stopped_, State{lineage_, committed_, record_, prepared_, holds_, open_rows_});
}

}  // namespace maniple

// The coordinator's way from one epoch to the next.
#include <algorithm>

#include "elastic/coordinator.h"

namespace maniple {

void Coordinator::advance() {
  expire_leases();
  check_hangs();
  if (phase_ == CoordinatorPhase::kRunning) note_stragglers();
  while (advance_once()) {
  }
  launch_due();
  fail_if_hopeless();
}

bool Coordinator::advance_once() {
  switch (phase_) {
    case CoordinatorPhase::kForming:
    case CoordinatorPhase::kPaused:
      if (!may_form()) return false;
      if (phase_ == CoordinatorPhase::kForming) choose_build();
      if (!may_form()) return false;  // some were refused
      decide();
      return true;
    case CoordinatorPhase::kRunning: {
      const std::string change = planned_change();
      if (change.empty()) return false;
      planned_at_ = now_;
      stop_after(max_step_ + 2, change);
      return true;
    }
    case CoordinatorPhase::kStopping:
    case CoordinatorPhase::kCollecting:
      if (!all_accounted()) return false;
      decide();
      return true;
    case CoordinatorPhase::kRestoring:
      if (ready_.size() != history_.epoch->members.size()) return false;
      run();
      return true;
    case CoordinatorPhase::kFinishing:
      if (finished_.size() != history_.epoch->members.size()) return false;
      end({0, config_.last_step, "all steps are done"});
      return true;
    case CoordinatorPhase::kDone:
    case CoordinatorPhase::kFailed:
      return false;
  }
  return false;
}

// Why the members should stop at a boundary soon; empty: no reason.
std::string Coordinator::planned_change() const {
  if (max_step_ + 2 >= config_.last_step) return {};
  if (history_.hold) return "the operator pauses the job";
  size_t members = 0, waiting = 0;
  for (const auto& [slice, slot] : slots_) {
    members += slot.stage == Stage::kMember;
    waiting += slot.stage == Stage::kWaiting;
  }
  const bool can_shrink = members > 1 && config_.layout.redundancy != Redundancy::kNone &&
                          members - 1 + waiting >= config_.min_slices;
  for (const auto& [slice, slot] : history_.slots)
    if (slot.drained && is_member(slice) && can_shrink)
      return fmt::format("slice {} is drained", slice);
  if (planned_at_ && now_ - *planned_at_ < config_.timeouts.admission_gap()) return {};
  if (members > target() && can_shrink) return fmt::format("the job shrinks to {}", target());
  if (members < target() && waiting > 0) return "a slice joins";
  return {};
}

void Coordinator::stop_after(Step step, const std::string& cause) {
  cause_ = cause;
  stopped_at_ = now_;
  stop_after_ = step;
  set_phase(CoordinatorPhase::kStopping);
  note("stop_after",
       fmt::format("epoch {} stops after step {}: {}", history_.number(), step, cause));
  send_members(Stop{stop_after_, history_.hold});
}

void Coordinator::stop_at_once(const std::string& cause) {
  cause_ = cause;
  if (!stopped_at_ || stop_after_) stopped_at_ = now_;
  stop_after_.reset();
  ready_.clear();
  set_phase(CoordinatorPhase::kCollecting);
  note("stop", fmt::format("epoch {} stops: {}", history_.number(), cause));
  for (const auto& [slice, slot] : slots_)
    if (slot.stage == Stage::kMember && !answers_.contains(slice)) send(slice, Stop{});
}

bool Coordinator::all_accounted() const {
  return std::all_of(slots_.begin(), slots_.end(), [&](const auto& entry) {
    return entry.second.stage != Stage::kMember || answers_.contains(entry.first);
  });
}

std::vector<Candidate> Coordinator::survivors() const {
  std::vector<Candidate> result;
  for (const auto& [slice, slot] : slots_)
    if (slot.stage == Stage::kMember)
      result.push_back(
          {{slice, life_of(slice), slot.registration->host}, slot.registration->address});
  return result;
}

bool Coordinator::is_barred(SliceId slice) const {
  const auto at = history_.slots.find(slice);
  return at != history_.slots.end() && (at->second.banned || at->second.drained);
}

// Waiting slices, at most `room` of them.
std::vector<Candidate> Coordinator::newcomers(size_t room) const {
  std::vector<Candidate> result;
  for (const auto& [slice, slot] : slots_) {
    if (slot.stage == Stage::kWaiting && !is_barred(slice) && result.size() < room)
      result.push_back(
          {{slice, life_of(slice), slot.registration->host}, slot.registration->address});
  }
  return result;
}

// Epoch 1, and an epoch that follows the loss of everybody, wait for the declared number, less slots
// that cannot come, or for the time-out; a pause with survivors ends as soon as there are enough.
bool Coordinator::may_form() const {
  if (history_.hold) return false;
  const size_t alive = survivors().size();
  const size_t room = target() > alive ? target() - alive : 0;
  const size_t count = alive + newcomers(room).size();
  if (count == 0 || count < config_.min_slices) return false;
  const auto able = std::count_if(slots_.begin(), slots_.end(),
                                  [this](const auto& entry) { return !is_barred(entry.first); });
  const size_t expected = std::min<size_t>(target(), static_cast<size_t>(able));
  return alive > 0 || count >= expected || now_ - phase_since_ >= config_.timeouts.forming();
}

// The build that most of the waiting slices have, the lowest number on a tie; others are refused.
void Coordinator::choose_build() {
  const auto has_build = [](const auto& entry, const Fingerprint& build) {
    return entry.second.stage == Stage::kWaiting && entry.second.registration->build == build;
  };
  int64_t most = 0;
  for (const auto& [slice, slot] : slots_) {
    if (slot.stage != Stage::kWaiting) continue;
    const Fingerprint build = slot.registration->build;
    const int64_t votes = std::count_if(slots_.begin(), slots_.end(),
                                        [&](const auto& e) { return has_build(e, build); });
    if (votes > most) build_ = build;
    most = std::max(most, votes);
  }
  for (auto& [slice, slot] : slots_) {
    if (slot.stage != Stage::kWaiting || slot.registration->build == build_) continue;
    const std::string reason = fmt::format("slice {} has another build than most", slice);
    ban(slice, static_cast<int32_t>(ExitCode::kConfig), reason);
    doom(slice, reason, false);
  }
}

// Every member of the epoch has answered or is gone.
void Coordinator::decide() {
  std::vector<Candidate> stay = survivors();
  const Step committed = settle(history_, answers_).committed;

  std::vector<SlicePair> broken;
  for (const auto& [a, b] : broken_)
    if (is_member(a) && is_member(b)) broken.push_back({a, b});
  broken_.clear();
  std::optional<SliceId> leaver = links_.note(broken, committed);
  const bool faulty = leaver.has_value();
  for (const auto& [slice, slot] : history_.slots)
    if (!leaver && slot.drained && is_member(slice)) leaver = slice;
  if (!leaver && stay.size() > target()) leaver = stay.back().member.slice;

  const size_t room = target() > stay.size() ? target() - stay.size() : 0;
  if (leaver) {
    // One at a time, and only if no block and not too many slices are lost by it.
    std::vector<Candidate> rest = stay;
    std::erase_if(rest, [&](const Candidate& c) { return c.member.slice == *leaver; });
    const size_t freed = target() > rest.size() ? target() - rest.size() : 0;
    const std::vector<Candidate> fresh = newcomers(freed);
    const bool enough = !rest.empty() && rest.size() + fresh.size() >= config_.min_slices;
    const EpochDecision decision =
        next_epoch(history_, config_.layout, answers_, rest, fresh, build_, cause_);
    if (enough && !decision.loads_checkpoint()) {
      doom(*leaver, cause_, !faulty);
      return history_.hold ? pause(cause_) : open_epoch(decision);
    }
  }
  const std::vector<Candidate> fresh = newcomers(room);
  const size_t count = stay.size() + fresh.size();
  const bool only_the_end_is_left = committed == config_.last_step && !stay.empty();
  const bool enough = count >= std::max(1u, config_.min_slices) || only_the_end_is_left;
  // When nobody is left, those that wait are not taken at once (may_form).
  const bool all_lost = stay.empty() && phase_ == CoordinatorPhase::kCollecting;
  if (history_.hold || all_lost || !enough) return pause(cause_);
  open_epoch(next_epoch(history_, config_.layout, answers_, stay, fresh, build_, cause_));
}

void Coordinator::pause(const std::string& cause) {
  const Settlement settlement = settle(history_, answers_);
  write_settled_rows(settlement.committed);
  append(PausedRecord{settlement.committed, settlement.record, cause});
  // Nobody goes on from here at once, so who has the row of K gives it now.
  for (const auto& [slice, state] : answers_)
    receive_rows(slice, state.open_rows, settlement.committed);
  set_phase(CoordinatorPhase::kPaused);
  note("paused", fmt::format("at step {}: {}", history_.committed, cause));
}

// Rows before K are stable already, since somebody has prepared K with all others. They are written
// before the record that lets their owners go; the row of K comes with READY.
void Coordinator::write_settled_rows(Step committed) {
  for (const auto& [slice, state] : answers_) receive_rows(slice, state.open_rows, committed - 1);
}

// The rows of a history that was rolled back.
void Coordinator::drop_rows() {
  actions_.push_back(DropRows{history_.committed});
  rows_.restart_after(history_.committed);
  append(RowsDroppedRecord{});
}

void Coordinator::open_epoch(EpochDecision decision) {
  for (const Member& member : decision.members) {
    const SlotHistory& slot = history_.slots.at(member.slice);
    decision.watched.push_back(slot.burn_in ? decision.committed + config_.probation : slot.watched);
  }
  const char* why = history_.suspect ? "results since then may be wrong" : "a block has no holder";
  if (!decision.loads_checkpoint()) write_settled_rows(decision.committed);
  append(EpochRecord{decision});
  if (decision.loads_checkpoint()) {
    drop_rows();
    if (decision.number > 1)
      note("rollback", fmt::format("epoch {} goes back to step {}: {}", decision.number,
                                   decision.committed, why));
  }
  answers_.clear();
  finished_.clear();
  ready_.clear();
  parts_.clear();
  stop_after_.reset();
  max_step_ = history_.committed;
  for (const Member& member : decision.members) {
    Slot& slot = slots_.at(member.slice);
    slot.stage = Stage::kMember;
    slot.watch.restart(now_);
  }
  set_phase(CoordinatorPhase::kRestoring);
  phase_since_ = now_;
  note("epoch", fmt::format("{} with {} slices from step {}: {}", decision.number,
                            decision.members.size(), decision.committed, decision.cause));
  send_members(Epoch{decision});
}

void Coordinator::run() {
  for (auto& [slice, slot] : slots_) slot.watch.restart(now_);
  stragglers_.restart();
  const auto ms = [](Time time) { return static_cast<double>(time) / kMillisecond; };
  std::string cost;
  if (const auto since = std::exchange(stopped_at_, std::nullopt))
    cost = fmt::format(", {:.1f} ms after STOP, {:.1f} of them to restore", ms(now_ - *since), ms(now_ - phase_since_));
  set_phase(CoordinatorPhase::kRunning);
  note("run", fmt::format("epoch {} trains{}", history_.number(), cost));
  send_members(Run{});
}

void Coordinator::end(const Verdict& verdict) {
  std::vector<MetricRow> last_rows;
  for (const auto& [slice, rows] : finished_) {
    receive_rows(slice, rows, verdict.committed - 1);
    if (!rows.empty() && rows.back().step == verdict.committed) last_rows = {rows.back()};
  }
  append(VerdictRecord{verdict, last_rows});
  receive_rows(0, last_rows, history_.committed);
  set_phase(verdict.code == 0 ? CoordinatorPhase::kDone : CoordinatorPhase::kFailed);
  note(verdict.code == 0 ? "done" : "failed", verdict.reason);
  for (const auto& [slice, slot] : slots_) send(slice, verdict);
}

}  // namespace maniple

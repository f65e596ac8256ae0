// The vote: attempts, unanimity, commits (spec/elastic.md section 4, step commit).
#include <algorithm>

#include "elastic/membership.h"

namespace maniple {

void Membership::begin_step() {
  if (stop_after_ && committed_ >= *stop_after_) return stop_now(decision_.number, false);
  if (committed_ < config_.last_step) return start_attempt(0, 0);
  phase_ = SlicePhase::kFinished;
  send(decision_.number, Finished{open_rows_});
}

void Membership::start_attempt(uint32_t attempt, uint32_t execution) {
  attempt_ = attempt;
  execution_ = execution;
  prepared_.reset();
  stage_ = Stage::kComputing;
  actions_.push_back(StartAttempt{decision_.number, committed_ + 1, attempt, execution});
}

void Membership::receive_prepare(const Prepare& p) {
  const bool here = p.epoch == decision_.number && p.incarnation == decision_.incarnation &&
                    decision_.index_of(p.slice) >= 0;
  const bool open = phase_ == SlicePhase::kRestoring || phase_ == SlicePhase::kReady ||
                    phase_ == SlicePhase::kRunning;
  // A peer that has this slice's PREPARE(k) may be at k + 1 when this slice is still to commit k.
  const bool near =
      p.step > committed_ && p.step <= committed_ + 2 && p.attempt <= config_.max_attempts;
  if (!here || !open || !near) return;
  votes_.emplace(VoteKey{p.step, p.attempt, p.slice}, p);
  count_votes();
}

std::vector<Prepare> Membership::full_set(Step step, uint32_t attempt) const {
  std::vector<Prepare> set;
  for (const Member& member : decision_.members) {
    const auto vote = votes_.find({step, attempt, member.slice});
    if (vote == votes_.end()) return {};
    set.push_back(vote->second);
  }
  return set;
}

// That a member found nothing wrong with its state before `step`, too.
bool Membership::prepared_by_all(Step step) const {
  return std::all_of(decision_.members.begin(), decision_.members.end(), [&](const Member& member) {
    return std::any_of(votes_.begin(), votes_.end(), [&](const auto& vote) {
      return vote.first.step == step && vote.first.slice == member.slice &&
             vote.second.report.health == Health::kOk;
    });
  });
}

// A slice commits only what every member prepared, and repeats only what some member refused; until
// then it waits for the vote or for STOP.
void Membership::count_votes() {
  if (phase_ != SlicePhase::kRunning) return;
  if (prepared_by_all(committed_ + 1)) note_stable(committed_);
  if (stage_ != Stage::kVoting) return;
  const std::vector<Prepare> prepares = full_set(committed_ + 1, attempt_);
  if (prepares.empty()) return;
  const Outcome outcome = decide(prepares);
  if (outcome != Outcome::kRedo) return commit(prepares, outcome);
  if (attempt_ + 1 >= config_.max_attempts)
    return leave(ExitCode::kComm,
                 fmt::format("step {} failed {} times", committed_ + 1, attempt_ + 1));
  start_attempt(attempt_ + 1, is_complete(prepares) ? execution_ + 1 : execution_);
}

void Membership::commit(const std::vector<Prepare>& prepares, Outcome outcome) {
  ++committed_;
  record_ = DecisionRecord{committed_, outcome, prepares};
  prepared_.reset();
  stage_ = Stage::kUpdating;
  std::erase_if(votes_, [&](const auto& vote) { return vote.first.step <= committed_; });
  actions_.push_back(ApplyUpdate{*record_});
}

void Membership::note_stable(Step step) {
  if (step <= stable_) return;
  stable_ = step;
  actions_.push_back(Stable{step});
  if (!decision_.members.empty() && decision_.members.front().slice == config_.slice) send_rows();
}

std::optional<SliceId> Membership::waits_for() const {
  if (phase_ != SlicePhase::kRunning || stage_ != Stage::kVoting) return std::nullopt;
  for (const Member& member : decision_.members)
    if (!votes_.contains({committed_ + 1, attempt_, member.slice})) return member.slice;
  return std::nullopt;
}

}  // namespace maniple

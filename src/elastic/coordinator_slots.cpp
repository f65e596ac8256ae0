// The coordinator's slots: lives, leases, hangs, launches and bans.
#include <algorithm>
#include <array>

#include "elastic/coordinator.h"

namespace maniple {
namespace {

// Exit codes that a relaunch on the same device with the same input would only repeat.
bool is_final(int32_t code) {
  static constexpr std::array kFinal = {ExitCode::kUsage, ExitCode::kData, ExitCode::kNoInput,
                                        ExitCode::kConfig};
  return std::any_of(kFinal.begin(), kFinal.end(),
                     [&](ExitCode final_code) { return static_cast<int32_t>(final_code) == code; });
}

constexpr auto kUnhealthy = static_cast<int32_t>(ExitCode::kUnhealthy);

}  // namespace

void Coordinator::grant_leases() {
  for (auto& [slice, slot] : slots_) {
    slot.heard_at = now_;
    slot.suspected = false;
    slot.watch.excuse(now_);
  }
}

void Coordinator::expire_leases() {
  if (history_.verdict) return;
  for (auto& [slice, slot] : slots_) {
    if (slot.stage != Stage::kMember && slot.stage != Stage::kWaiting) continue;
    const Time silence = now_ - slot.heard_at;
    if (silence > config_.timeouts.suspicion() && !slot.suspected) {
      slot.suspected = true;
      note("silent",
           fmt::format("slice {} has been silent for {} ms", slice, silence / kMillisecond));
    }
    if (silence <= config_.timeouts.lease()) continue;
    if (slot.stage == Stage::kMember)
      lose_member(slice, "it lost its lease");
    else
      doom(slice, "it lost its lease", false);
  }
}

void Coordinator::check_hangs() {
  if (phase_ == CoordinatorPhase::kForming || phase_ == CoordinatorPhase::kPaused || history_.verdict) return;
  std::vector<WaitingSlice> members;
  for (const auto& [slice, slot] : slots_) {
    if (slot.stage != Stage::kMember) continue;
    const bool done = answers_.contains(slice) || finished_.contains(slice) ||
                      (phase_ == CoordinatorPhase::kRestoring && ready_.contains(slice));
    const bool stuck = slot.watch.stuck(config_.timeouts, now_);
    // To answer a STOP that asks for no further step nobody has to wait.
    const bool may_wait = phase_ != CoordinatorPhase::kCollecting || stop_after_;
    members.push_back({slice,
                       done    ? Motion::kDone
                       : stuck ? Motion::kStuck
                               : Motion::kMoving,
                       may_wait ? slot.watch.waits_for() : std::nullopt});
  }
  const HangCharge charge = charge_hang(members);
  if (charge.slice) {
    lose_member(*charge.slice, "it hangs");
  } else if (charge.link) {
    broken_.insert(*charge.link);
    stop_at_once(fmt::format("nothing gets through between slices {} and {}", charge.link->first,
                             charge.link->second));
  } else {
    return;
  }
  for (auto& [slice, slot] : slots_) slot.watch.excuse(now_);
}

void Coordinator::note_stragglers() {
  std::map<SliceId, Time> unit_times;
  for (const auto& [slice, slot] : slots_)
    if (slot.stage == Stage::kMember) unit_times[slice] = slot.unit_time;
  for (const auto& [slice, slow, unit, others] : stragglers_.see(unit_times, max_step_)) {
    const auto ms = [](Time t) { return static_cast<double>(t) / kMillisecond; };
    note(slow ? "straggler" : "straggler_over",
         fmt::format("slice {} takes {:.3g} ms for a unit, the others {:.3g} ms (median)", slice, ms(unit), ms(others)));
  }
}

// The life of the slot does not go on, though processes of it may still be there.
void Coordinator::dying(SliceId slice, const std::string& reason) {
  const Stage stage = slots_.at(slice).stage;
  if (history_.verdict) return;
  if (stage == Stage::kMember)
    lose_member(slice, reason);
  else if (stage == Stage::kLaunched || stage == Stage::kWaiting)
    doom(slice, reason, false);
}

// The life of the slot is over.
void Coordinator::ended(SliceId slice, int32_t code, const std::string& reason) {
  Slot& slot = slots_.at(slice);
  if (slot.stage == Stage::kIdle) return;
  const bool member = slot.stage == Stage::kMember;
  const bool blameless = slot.blameless || history_.verdict;
  slot.stage = Stage::kIdle;
  slot.registration.reset();
  slot.unit_time = 0;
  slot.blameless = false;
  slot.launch_at = now_;
  note("slice_ended", fmt::format("slice {} life {}: {}", slice, life_of(slice), reason));
  if (!blameless) {
    slot.failures = now_ - slot.launched_at >= config_.timeouts.healthy() ? 1 : slot.failures + 1;
    slot.launch_at += config_.timeouts.back_off(slot.failures);
    if (is_final(code))
      ban(slice, code,
          fmt::format("slice {}: {}; a relaunch would only repeat it", slice, reason));
    else if (slot.failures > config_.max_restarts)
      ban(slice, code, fmt::format("slice {} failed {} times in a row", slice, slot.failures));
    else if (code == kUnhealthy && history_.slots.at(slice).burn_in)
      ban(slice, code, fmt::format("slice {} has failed its burn-in and stays quarantined: {}", slice, reason));
    else if (code == kUnhealthy)
      strike(slice, reason);
  }
  if (member) lose_member(slice, reason);
}

// The slice takes part in nothing any more. Its processes may live: they are ordered to end.
void Coordinator::lose_member(SliceId slice, const std::string& reason) {
  if (is_member(slice)) doom(slice, reason, false);
  finished_.erase(slice);
  ready_.erase(slice);
  if (phase_ == CoordinatorPhase::kPaused || history_.verdict) return;
  if (phase_ != CoordinatorPhase::kCollecting || stop_after_)
    stop_at_once(fmt::format("slice {} is lost: {}", slice, reason));
}

void Coordinator::doom(SliceId slice, const std::string& reason, bool blameless) {
  Slot& slot = slots_.at(slice);
  slot.stage = Stage::kDoomed;
  slot.blameless = blameless;
  slot.registration.reset();
  slot.nudged_at = now_;
  note("slice_dropped", fmt::format("slice {} life {}: {}", slice, life_of(slice), reason));
  send(slice, Dismiss{reason});
  send(slice, Kill{});
}

// A device that went wrong too often is not used until the operator readmits it.
void Coordinator::strike(SliceId slice, const std::string& reason) {
  append(StrikeRecord{slice, reason});
  const uint32_t strikes = history_.slots.at(slice).strikes;
  note("strike", fmt::format("slice {}, {} of {}: {}", slice, strikes, config_.max_strikes, reason));
  if (strikes < config_.max_strikes || history_.slots.at(slice).banned) return;
  const std::string why = fmt::format("slice {} is quarantined after {} wrong results", slice, strikes);
  ban(slice, kUnhealthy, why);
  if (is_member(slice)) lose_member(slice, why);
}

void Coordinator::ban(SliceId slice, int32_t code, const std::string& reason) {
  const auto at = history_.slots.find(slice);
  const bool drained = at != history_.slots.end() && at->second.drained;
  append(SlotRecord{slice, true, drained, code, reason});
  note("slice_banned", reason);
}

// Starts a life in every slot that may have one, while members and spares are short.
void Coordinator::launch_due() {
  if (history_.verdict || phase_ == CoordinatorPhase::kFinishing) return;
  const auto running = [](const auto& entry) {
    const Stage stage = entry.second.stage;
    return stage == Stage::kLaunched || stage == Stage::kWaiting || stage == Stage::kMember;
  };
  auto count = std::count_if(slots_.begin(), slots_.end(), running);
  for (auto& [slice, slot] : slots_) {
    if (count >= static_cast<int64_t>(target()) + config_.spares) return;
    if (slot.stage != Stage::kIdle || slot.agent == 0 || is_barred(slice) || now_ < slot.launch_at)
      continue;
    append(LaunchRecord{slice, life_of(slice) + 1, slot.failures});
    slot.stage = Stage::kLaunched;
    slot.launched_at = now_;
    slot.heard_at = now_;
    slot.watch.restart(now_);
    launch(slice);
    ++count;
  }
}

void Coordinator::launch(SliceId slice) {
  send(slice, Launch{history_.slots.at(slice).burn_in});
}

void Coordinator::fail_if_hopeless() {
  if (phase_ != CoordinatorPhase::kForming && phase_ != CoordinatorPhase::kPaused) return;
  uint32_t usable = config_.num_slots();
  int32_t code = static_cast<int32_t>(ExitCode::kComm);
  for (const auto& [slice, slot] : history_.slots) {
    if (!slot.banned) continue;
    --usable;
    if (is_final(slot.code) || slot.code == kUnhealthy) code = slot.code;
  }
  if (usable >= config_.min_slices) return;
  end({code, history_.committed,
       fmt::format("{} of {} slots can still be used, min_slices is {}: all others are banned",
                   usable, config_.num_slots(), config_.min_slices)});
}

}  // namespace maniple

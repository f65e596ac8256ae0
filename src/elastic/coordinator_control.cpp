// The operator's requests.
#include "elastic/coordinator.h"

namespace maniple {

void Coordinator::operate(const Control& control) {
  const auto reply = [&](bool ok, const std::string& text) {
    actions_.push_back(Reply{{control.request, ok, text}});
  };
  if (control.command == Command::kStatus) return reply(true, status_text());
  if (history_.verdict) return reply(false, "the job has ended");
  const uint32_t n = control.argument;
  const bool names_slot = slots_.contains(n);
  const auto at = history_.slots.find(n);
  const SlotHistory slot = at == history_.slots.end() ? SlotHistory{} : at->second;
  switch (control.command) {
    case Command::kDrain:
      if (!names_slot) return reply(false, fmt::format("there is no slice {}", n));
      if (config_.layout.redundancy == Redundancy::kNone && is_member(n))
        return reply(false,
                     "without redundancy its blocks have no other holder: pause the job instead");
      append(SlotRecord{n, slot.banned, true, slot.code, "drained by the operator"});
      return reply(true, fmt::format("slice {} will leave at a step boundary", n));
    case Command::kReadmit:
      if (!names_slot) return reply(false, fmt::format("there is no slice {}", n));
      slots_.at(n).failures = 0;
      append(SlotRecord{n, false, false, 0, "readmitted by the operator"});
      return reply(true, fmt::format("slice {} may be used again", n));
    case Command::kPause:
      append(WishRecord{history_.target, true});
      return reply(true, "the job will pause at a step boundary");
    case Command::kResume:
      append(WishRecord{history_.target, false});
      return reply(true, "the job goes on as soon as enough slices are there");
    case Command::kScale:
      if (n < std::max(1u, config_.min_slices) || n > config_.num_slots())
        return reply(false, fmt::format("{} slices: between min_slices = {} and {} slots", n,
                                        config_.min_slices, config_.num_slots()));
      append(WishRecord{n, history_.hold});
      return reply(true, fmt::format("the job will have {} slices", n));
    case Command::kStatus:
      return;
  }
}

std::string Coordinator::status_text() const {
  std::string text =
      fmt::format("phase {} epoch {} step {} published {} incarnation {}\n", phase_name(phase_),
                  history_.number(), std::max(max_step_, history_.committed), history_.published,
                  history_.incarnation);
  static constexpr const char* kStages[] = {"idle", "launched", "waiting", "member", "dropped"};
  for (const auto& [slice, slot] : slots_) {
    const auto at = history_.slots.find(slice);
    const SlotHistory past = at == history_.slots.end() ? SlotHistory{} : at->second;
    text += fmt::format("slice {} life {} {} failures {} strikes {}{}{}", slice, past.life,
                        kStages[static_cast<size_t>(slot.stage)], slot.failures, past.strikes,
                        past.banned ? " banned" : "", past.drained ? " drained" : "");
    if (past.burn_in) text += " burn-in";
    if (past.watched > std::max(max_step_, history_.committed)) text += fmt::format(" on probation to step {}", past.watched);
    if (slot.stage == Stage::kMember && slot.unit_time > 0)
      text += fmt::format(" unit {:.3g} ms", static_cast<double>(slot.unit_time) / kMillisecond);
    text += '\n';
  }
  return text;
}

}  // namespace maniple

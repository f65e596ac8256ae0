#include "launch/slice_control.h"

namespace maniple {

SliceControl::SliceControl(const RankControl::Config& line, MembershipConfig membership,
                           Events events)
    : machine_((membership.slice = line.slice, membership.life = line.life, membership)),
      events_(std::move(events)) {
  RankControl::Events from_line;
  from_line.message = [this](const Envelope& envelope) { on(FromCoordinator{envelope}); };
  from_line.reached = [this] { on(Connected{}); };
  from_line.status = [this] {
    std::pair<SliceStatus, std::optional<SliceId>> result;
    {
      std::lock_guard lock(mutex_);
      result = {machine_.status(), machine_.waits_for()};
    }
    return result;
  };
  from_line.waits_for = events_.waits_for;
  from_line.orphaned = events_.orphaned;
  std::unique_lock lock(mutex_);  // until line_ is there, events wait
  line_ = std::make_unique<RankControl>(line, from_line);
}

void SliceControl::on(const MembershipEvent& event) {
  std::optional<EpochNumber> halted;
  {
    std::lock_guard lock(mutex_);
    for (MembershipAction& action : machine_.on(event)) {
      if (const auto* up = std::get_if<ToCoordinator>(&action)) {
        line_->send(up->envelope);
        continue;
      }
      if (const auto* halt = std::get_if<Halt>(&action); halt && halt->at_once)
        halted = halt->epoch;
      actions_.push_back(std::move(action));
    }
  }
  changed_.notify_all();
  if (halted && events_.halt) events_.halt(*halted);
}

std::optional<MembershipAction> SliceControl::next(Time most) {
  std::unique_lock lock(mutex_);
  const auto there = [this] { return !actions_.empty(); };
  if (!changed_.wait_for(lock, std::chrono::microseconds(most), there)) return std::nullopt;
  MembershipAction action = std::move(actions_.front());
  actions_.pop_front();
  return action;
}

SliceStatus SliceControl::status() const {
  std::lock_guard lock(mutex_);
  return machine_.status();
}

}  // namespace maniple

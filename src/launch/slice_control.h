// The leader of a slice: its state machine (elastic/membership.h) on the line to its agent. STOP is
// answered by the control thread at once, whatever the training thread does, under the lock that
// also guards the vote.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>

#include "elastic/membership.h"
#include "launch/rank_control.h"

namespace maniple {

class SliceControl {
 public:
  // `halt`: nothing is decided in this epoch, or an earlier one, any more: end every wait on its
  // links at once. Any thread; must not wait; may come more than once. `orphaned` as in RankControl.
  struct Events {
    std::function<void(EpochNumber)> halt;
    // A slice that the training thread waits for outside the vote, for the beats. May be empty.
    std::function<std::optional<SliceId>()> waits_for;
    std::function<void(const std::string& reason)> orphaned;
  };
  // Registers with the coordinator: all ranks of the slice should be there.
  SliceControl(const RankControl::Config& line, MembershipConfig membership, Events events);

  // Any thread, but none of the callbacks above.
  void on(const MembershipEvent& event);
  // The training thread: the next action that is its own, in order; waits for it, at most this long.
  // ToCoordinator was carried out already; Halt was announced by `halt` and comes here as well.
  std::optional<MembershipAction> next(Time most);

  SliceStatus status() const;
  RankControl& line() { return *line_; }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Membership machine_;
  std::deque<MembershipAction> actions_;
  Events events_;
  std::unique_ptr<RankControl> line_;
};

}  // namespace maniple

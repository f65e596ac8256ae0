// Who is charged with a hang (spec/elastic.md sections 3 and 4). A beat proves that a process
// lives, a growing progress count that it gets on.
#pragma once

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "elastic/messages.h"
#include "elastic/timeouts.h"

namespace maniple {

// The progress of one slice. Its limit adapts to the median gap between its counts.
class ProgressWatch {
 public:
  // Forgets what was seen and starts anew, as with an epoch.
  void restart(Time now);
  // A reading of the slice; older counts than the last are ignored.
  void see(const SliceProgress& progress, Time now);
  // No time has passed from the slice's point of view.
  void excuse(Time now) { changed_at_ = now; }

  bool stuck(const Timeouts& timeouts, Time now) const;
  std::optional<SliceId> waits_for() const { return waits_for_; }

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.count_, s.waits_for_, s.changed_at_, s.num_gaps_);
    for (auto& gap : s.gaps_) f(gap);
  }

 private:
  Time median_gap() const;

  uint64_t count_ = 0;
  std::optional<SliceId> waits_for_;
  Time changed_at_ = 0;
  uint32_t num_gaps_ = 0;  // seen so far; the last ones are kept
  std::array<Time, 15> gaps_{};
};

enum class Motion : uint8_t {
  kMoving,
  kStuck,
  kDone,  // has done all that this phase asks of it
};

struct WaitingSlice {
  SliceId slice = 0;
  Motion motion = Motion::kMoving;
  std::optional<SliceId> waits_for;
};

struct HangCharge {
  std::optional<SliceId> slice;                     // it hangs and waits for nobody
  std::optional<std::pair<SliceId, SliceId>> link;  // between these two nothing gets through
};

// At most one charge. Following who waits for whom from a stuck slice, the first that waits for
// nobody (or for no member) hangs. A circle of stuck slices, or a stuck slice that waits for one
// that is done, speaks of a broken link. Who waits for a slice that gets on is not charged.
HangCharge charge_hang(const std::vector<WaitingSlice>& members);

}  // namespace maniple

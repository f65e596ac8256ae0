#include "elastic/hangs.h"

#include <algorithm>
#include <set>

namespace maniple {

void ProgressWatch::restart(Time now) {
  *this = ProgressWatch{};
  changed_at_ = now;
}

void ProgressWatch::see(const SliceProgress& progress, Time now) {
  if (progress.count < count_) return;
  waits_for_ = progress.waits_for;
  if (progress.count == count_) return;
  if (count_ > 0) gaps_[num_gaps_++ % gaps_.size()] = now - changed_at_;
  count_ = progress.count;
  changed_at_ = now;
}

Time ProgressWatch::median_gap() const {
  const size_t n = std::min<size_t>(num_gaps_, gaps_.size());
  if (n == 0) return 0;
  std::array<Time, 15> sorted = gaps_;
  std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.begin() + n);
  return sorted[n / 2];
}

bool ProgressWatch::stuck(const Timeouts& timeouts, Time now) const {
  return now - changed_at_ > timeouts.hang(median_gap());
}

HangCharge charge_hang(const std::vector<WaitingSlice>& members) {
  const auto find = [&](SliceId slice) {
    return std::find_if(members.begin(), members.end(),
                        [&](const WaitingSlice& m) { return m.slice == slice; });
  };
  const auto next_of = [&](auto at) {
    const bool waits = at->waits_for && *at->waits_for != at->slice;
    return waits ? find(*at->waits_for) : members.end();
  };
  HangCharge charge;
  for (const WaitingSlice& start : members) {
    if (start.motion != Motion::kStuck) continue;
    std::set<SliceId> seen;
    auto at = find(start.slice), next = next_of(at);
    while (next != members.end() && next->motion == Motion::kStuck &&
           seen.insert(at->slice).second) {
      at = next;
      next = next_of(at);
    }
    if (next == members.end()) return {at->slice, std::nullopt};
    if (next->motion != Motion::kMoving && !charge.link)
      charge.link = {std::min(at->slice, next->slice), std::max(at->slice, next->slice)};
  }
  return charge;
}

}  // namespace maniple

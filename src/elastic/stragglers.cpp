#include "elastic/stragglers.h"

#include <algorithm>

namespace maniple {

std::vector<StragglerWatch::Notice> StragglerWatch::see(const std::map<SliceId, Time>& unit_times,
                                                        Step step) {
  std::vector<Notice> notices;
  for (const auto& [slice, unit] : unit_times) {
    std::vector<Time> others;
    for (const auto& [other, time] : unit_times)
      if (other != slice && time > 0) others.push_back(time);
    if (unit == 0 || others.empty()) continue;
    const auto middle = others.begin() + static_cast<std::ptrdiff_t>(others.size() / 2);
    std::nth_element(others.begin(), middle, others.end());
    const double factor = static_cast<double>(unit) / static_cast<double>(*middle);
    const auto at = slow_.find(slice);
    if (at == slow_.end()) {
      if (factor >= kSlow) slow_[slice] = {step, false};
    } else if (factor <= kWell || (!at->second.told && factor < kSlow)) {
      if (at->second.told) notices.push_back({slice, false, unit, *middle});
      slow_.erase(at);
    } else if (!at->second.told && step - at->second.since >= kSteps) {
      at->second.told = true;
      notices.push_back({slice, true, unit, *middle});
    }
  }
  return notices;
}

}  // namespace maniple

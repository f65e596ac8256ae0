#include "elastic/links.h"

#include <algorithm>

namespace maniple {

SlicePair slice_pair(SliceId a, SliceId b) { return {std::min(a, b), std::max(a, b)}; }

int64_t LinkBook::breaks_of(SliceId slice) const {
  return std::count_if(breaks_.begin(), breaks_.end(),
                       [&](const Break& b) { return b.low == slice || b.high == slice; });
}

std::optional<SliceId> LinkBook::note(const std::vector<SlicePair>& pairs, Step step) {
  // A rollback may have turned the step back; such breaks are recent too.
  std::erase_if(breaks_, [&](const Break& b) { return b.step + kMemory < step; });
  std::optional<SlicePair> again;
  for (const SlicePair& pair : pairs) {
    const bool known = std::any_of(breaks_.begin(), breaks_.end(), [&](const Break& b) {
      return b.low == pair.first && b.high == pair.second;
    });
    if (known && !again) again = pair;
  }
  for (const SlicePair& pair : pairs) breaks_.push_back({pair.first, pair.second, step});
  if (!again) return std::nullopt;
  return breaks_of(again->first) > breaks_of(again->second) ? again->first : again->second;
}

}  // namespace maniple

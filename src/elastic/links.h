// Broken links with both ends alive (spec/elastic.md section 4): the first time the links are
// rebuilt in a new epoch with the same members, the second time one end is dropped.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "elastic/types.h"

namespace maniple {

using SlicePair = std::pair<SliceId, SliceId>;  // lower number first

SlicePair slice_pair(SliceId a, SliceId b);

class LinkBook {
 public:
  static constexpr Step kMemory = 100;  // steps after which a break is forgotten

  // Notes the pairs that broke at `step` with both ends alive. Returns the slice to drop: where a
  // pair broke again, the end with more broken links, the higher number on a tie. At most one.
  std::optional<SliceId> note(const std::vector<SlicePair>& pairs, Step step);

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.breaks_);
  }

 private:
  struct Break {
    SliceId low = 0, high = 0;
    Step step = 0;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.low, s.high, s.step);
    }
  };
  int64_t breaks_of(SliceId slice) const;

  std::vector<Break> breaks_;
};

}  // namespace maniple

// Notices slices that are slower than the others: they hold all up, and nobody is dropped for it.
#pragma once

#include <map>
#include <vector>

#include "elastic/types.h"

namespace maniple {

class StragglerWatch {
 public:
  static constexpr double kSlow = 1.5;  // times the median of the others: from here on slow
  static constexpr double kWell = 1.2;  // up to here no longer
  static constexpr Step kSteps = 20;    // in a row, before it is said

  struct Notice {
    SliceId slice = 0;
    bool slow = true;  // false: it has recovered
    Time unit = 0, others = 0;
  };
  // unit_times: of each member, the time of a unit in its last steps; 0: not known yet. What is to
  // be said at this step.
  std::vector<Notice> see(const std::map<SliceId, Time>& unit_times, Step step);
  // The membership changes: steps in a row begin anew.
  void restart() { slow_.clear(); }

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.slow_);
  }

 private:
  struct Slow {
    Step since = 0;
    bool told = false;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.since, s.told);
    }
  };
  std::map<SliceId, Slow> slow_;
};

}  // namespace maniple

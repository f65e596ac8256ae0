#include "elastic/vote.h"

#include <algorithm>

namespace maniple {

Outcome decide(const std::vector<Prepare>& prepares) {
  bool finite = true;
  int64_t tokens = 0;
  for (const Prepare& p : prepares) {
    if (p.report.health != Health::kOk) return Outcome::kRedo;
    finite = finite && p.report.finite;
    tokens += p.report.tokens;
  }
  return finite && tokens > 0 ? Outcome::kCommit : Outcome::kSkip;
}

bool is_complete(const std::vector<Prepare>& prepares) {
  return std::none_of(prepares.begin(), prepares.end(),
                      [](const Prepare& p) { return p.report.health == Health::kPoisoned; });
}

}  // namespace maniple

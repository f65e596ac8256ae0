#include "elastic/vote.h"

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

}  // namespace maniple

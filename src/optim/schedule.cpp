#include "optim/schedule.h"

#include <algorithm>
#include <cmath>

namespace maniple {

double learning_rate(const OptimConfig& o, int64_t step, int64_t num_steps) {
  const double t = static_cast<double>(step - 1), warmup = static_cast<double>(o.warmup_steps);
  if (t < warmup) return o.lr * (t + 1) / warmup;
  const double end = static_cast<double>(num_steps);
  auto progress = [&](double from) {
    return std::clamp((t - from) / std::max(1.0, end - from), 0.0, 1.0);
  };
  if (o.schedule == "cosine")
    return o.min_lr + (o.lr - o.min_lr) / 2 * (1 + std::cos(M_PI * progress(warmup)));
  if (o.schedule == "linear") return o.lr + (o.min_lr - o.lr) * progress(warmup);
  if (o.schedule == "wsd") {
    const double decay =
        o.decay_steps > 0 ? static_cast<double>(o.decay_steps) : std::max(1.0, end / 10);
    return o.lr + (o.min_lr - o.lr) * progress(std::max(warmup, end - decay));
  }
  return o.lr;
}

}  // namespace maniple

// Learning rate of a step (steps count from 1). Warm-up is linear from lr / warmup_steps; then
// cosine or linear to min_lr at the last step, constant, or wsd: constant until the final
// decay_steps, then linear to min_lr.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace maniple {
double learning_rate(const OptimConfig& optim, int64_t step, int64_t num_steps);
}

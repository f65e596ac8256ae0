// The clock of the processes around the pure state machines.
#pragma once

#include <chrono>

#include "elastic/types.h"

namespace maniple {

// Microseconds of the monotonic clock, which no adjustment of the date touches.
inline Time monotonic_now() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace maniple

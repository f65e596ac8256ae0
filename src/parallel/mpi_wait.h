// How a rank waits for MPI: it polls at once for what comes soon, gives the processor to others for
// what takes a while, and sleeps between polls where it waits for long, since with fewer processors
// than ranks somebody else needs it.
#pragma once

#include <sched.h>

#include <chrono>
#include <thread>

#include "core/errors.h"

namespace maniple {

// Calls poll() until it returns true; throws CommError, naming `what`, after deadline_s seconds.
template <typename Poll>
void wait_for(const char* what, double deadline_s, const Poll& poll) {
  using namespace std::chrono_literals;
  constexpr auto kPatience = 20ms;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t polls = 0; !poll(); ++polls) {
    if (polls < 200) continue;
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited < kPatience) {
      sched_yield();
      continue;
    }
    if (std::chrono::duration<double>(waited).count() > deadline_s)
      throw CommError(fmt::format("MPI {} did not finish within {} s: a rank hangs or is gone", what,
                                  deadline_s));
    std::this_thread::sleep_for(20us);
  }
}

}  // namespace maniple

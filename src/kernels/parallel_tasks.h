// Runs body(task) for tasks [0, n) on the threads of this rank; a thread takes the next task when it
// is free, so uneven tasks and busy neighbours cost little. Tasks must not depend on each other, and
// their results not on the thread: then neither order nor number of threads changes a bit.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace maniple {

template <typename Body>
void parallel_tasks(int64_t n, const Body& body) {
  const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(n, at::get_num_threads());
  if (threads <= 1) {
    for (int64_t task = 0; task < n; ++task) body(task);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      for (int64_t task = next++; task < n; task = next++) body(task);
  });
}

// The same over ranges [begin, end) of at most `grain` of n elements.
template <typename Body>
void parallel_ranges(int64_t n, int64_t grain, const Body& body) {
  parallel_tasks((n + grain - 1) / grain,
                 [&](int64_t task) { body(task * grain, std::min(n, (task + 1) * grain)); });
}

}  // namespace maniple

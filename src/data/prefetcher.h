// Keeps the next batches ready while the current one is computed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "data/row_source.h"

namespace maniple {

// A thread loads batches k, k + 1, ... in order and stays at most `depth` ahead of the reader. What
// get returns depends on k alone, not on timing: get(k) for any other k than the next one (after a
// rollback) drops what is ready and starts over at k.
//
// Example: Prefetcher batches([&](uint64_t step) { return rows_of(step); }, first_step, 2);
//          auto [rows, waited] = batches.get(step);
class Prefetcher {
 public:
  using Rows = std::vector<Row>;
  using Load = std::function<Rows(uint64_t)>;  // called from the thread only, one call at a time

  struct Batch {
    Rows rows;
    double seconds_waited;  // that get waited for it
  };

  Prefetcher(Load load, uint64_t first, int64_t depth);  // depth >= 1
  ~Prefetcher();                                         // waits for a load in progress
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Batch k. Throws what load(k) threw; another get(k) then loads it again. One caller at a time.
  Batch get(uint64_t k);

 private:
  struct Loaded {
    uint64_t number;
    Rows rows;
    std::exception_ptr failure;
  };

  void run();

  const Load load_;
  const size_t depth_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<Loaded> ready_;  // successive numbers; the one after them is next_
  uint64_t next_;             // the number to load next
  uint64_t restarts_ = 0;     // a load begun before a restart is thrown away
  bool failed_ = false;       // the last of ready_ is a failure: nothing is loaded beyond it
  bool stop_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace maniple

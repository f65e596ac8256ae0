#include "data/prefetcher.h"

#include <chrono>
#include <utility>

#include "core/errors.h"

namespace maniple {

Prefetcher::Prefetcher(Load load, uint64_t first, int64_t depth)
    : load_(std::move(load)), depth_(static_cast<size_t>(depth)), next_(first) {
  MANIPLE_INVARIANT(depth >= 1, "prefetch depth {}", depth);
  thread_ = std::thread([this] { run(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Prefetcher::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || (!failed_ && ready_.size() < depth_); });
    if (stop_) return;
    Loaded loaded{next_, {}, nullptr};
    const uint64_t restarts = restarts_;
    lock.unlock();
    try {
      loaded.rows = load_(loaded.number);
    } catch (...) {
      loaded.failure = std::current_exception();
    }
    lock.lock();
    if (restarts != restarts_) continue;
    failed_ = loaded.failure != nullptr;
    ++next_;
    ready_.push_back(std::move(loaded));
    changed_.notify_all();
  }
}

Prefetcher::Batch Prefetcher::get(uint64_t k) {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  if (k != (ready_.empty() ? next_ : ready_.front().number)) {
    ready_.clear();
    next_ = k;
    failed_ = false;
    ++restarts_;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return !ready_.empty(); });
  Loaded loaded = std::move(ready_.front());
  ready_.pop_front();
  if (loaded.failure) failed_ = false;
  lock.unlock();
  changed_.notify_all();
  if (loaded.failure) std::rethrow_exception(loaded.failure);
  const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begin;
  return {std::move(loaded.rows), waited.count()};
}

}  // namespace maniple

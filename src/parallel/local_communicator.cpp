#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "core/errors.h"
#include "parallel/communicator.h"

namespace maniple {
namespace {

struct Done : Work {
  void wait() override {}
};

// The meeting point of one communicator's threads: each publishes a pointer, all read, all leave.
class Hub {
 public:
  Hub(int size, std::shared_ptr<std::atomic<bool>> failed) : size_(size), slots_(size), failed_(failed) {}

  // Publishes `mine`, waits for everybody, lets `read` look at all, waits for everybody again.
  void exchange(int rank, const void* mine,
                const std::function<void(const std::vector<const void*>&)>& read) {
    slots_[rank] = mine;
    meet();
    read(slots_);
    meet();
  }
  void meet() {
    std::unique_lock lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
      return;
    }
    while (round == round_) {
      changed_.wait_for(lock, std::chrono::milliseconds(50));
      if (*failed_) throw CommError("another local rank failed; the collective cannot finish");
    }
  }
  std::map<std::pair<int64_t, int>, std::shared_ptr<Hub>> children;
  std::mutex children_mutex;
  std::shared_ptr<std::atomic<bool>> failed() const { return failed_; }

 private:
  const int size_;
  std::vector<const void*> slots_;
  std::shared_ptr<std::atomic<bool>> failed_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  int64_t round_ = 0;
};

class LocalCommunicator : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Hub> hub, int rank, int size)
      : hub_(std::move(hub)), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override {
    all_gather_v(in, out, std::vector<int64_t>(size_, in.numel()));
    return std::make_unique<Done>();
  }

  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override {
    hub_->exchange(rank_, in.data_ptr(), [&](const auto& all) {
      auto* to = static_cast<char*>(out.data_ptr());
      for (int r = 0; r < size_; ++r) {
        const int64_t bytes = counts[r] * in.element_size();
        if (bytes && to != all[r]) std::memcpy(to, all[r], bytes);
        to += bytes;
      }
    });
  }

  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override {
    struct Offer {
      const char* data;
      const std::vector<int64_t>* rows;
      int64_t row_bytes;
    };
    auto row_bytes = [](const at::Tensor& t) {
      int64_t n = t.element_size();
      for (int64_t d = 1; d < t.dim(); ++d) n *= t.size(d);
      return n;
    };
    const Offer mine{static_cast<const char*>(in.data_ptr()), &send_rows, row_bytes(in)};
    hub_->exchange(rank_, &mine, [&](const auto& all) {
      auto* to = static_cast<char*>(out.data_ptr());
      for (int r = 0; r < size_; ++r) {
        const auto& offer = *static_cast<const Offer*>(all[r]);
        int64_t skip = 0;
        for (int i = 0; i < rank_; ++i) skip += (*offer.rows)[i];
        MANIPLE_INVARIANT((*offer.rows)[rank_] == recv_rows[r], "rows sent {} != expected {}",
                          (*offer.rows)[rank_], recv_rows[r]);
        const int64_t bytes = recv_rows[r] * offer.row_bytes;
        if (bytes) std::memcpy(to, offer.data + skip * offer.row_bytes, bytes);
        to += bytes;
      }
    });
  }

  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override {
    hub_->exchange(rank_, in.data_ptr(), [&](const auto& all) {
      int64_t skip = 0;
      for (int r = 0; r < rank_; ++r) skip += counts[r];
      auto* to = static_cast<uint64_t*>(out.data_ptr());
      std::fill(to, to + counts[rank_], 0);
      for (const void* p : all) {
        const auto* from = static_cast<const uint64_t*>(p) + skip;
        for (int64_t i = 0; i < counts[rank_]; ++i) to[i] += from[i];
      }
    });
    return std::make_unique<Done>();
  }

  void all_reduce(at::Tensor& t) override {
    std::vector<uint64_t> sum(t.numel());
    hub_->exchange(rank_, t.data_ptr(), [&](const auto& all) {
      for (const void* p : all)
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<const uint64_t*>(p)[i];
    });
    if (!sum.empty()) std::memcpy(t.data_ptr(), sum.data(), sum.size() * 8);
  }

  void broadcast(at::Tensor& t, int root) override {
    hub_->exchange(rank_, t.data_ptr(), [&](const auto& all) {
      if (rank_ != root && t.nbytes()) std::memcpy(t.data_ptr(), all[root], t.nbytes());
    });
  }
  void barrier() override { hub_->meet(); }

  std::unique_ptr<Communicator> split(int color, int key) override {
    const std::pair<int, int> mine{color, key};
    int new_rank = 0, new_size = 0;
    hub_->exchange(rank_, &mine, [&](const auto& all) {
      for (int r = 0; r < size_; ++r) {
        const auto& other = *static_cast<const std::pair<int, int>*>(all[r]);
        if (other.first != color) continue;
        ++new_size;
        if (std::pair(other.second, r) < std::pair(key, rank_)) ++new_rank;
      }
    });
    std::shared_ptr<Hub> child;
    {
      std::lock_guard lock(hub_->children_mutex);
      auto& entry = hub_->children[{splits_++, color}];
      if (!entry) entry = std::make_shared<Hub>(new_size, hub_->failed());
      child = entry;
    }
    return std::make_unique<LocalCommunicator>(child, new_rank, new_size);
  }

 private:
  std::shared_ptr<Hub> hub_;
  const int rank_, size_;
  int64_t splits_ = 0;
};

}  // namespace

at::Tensor Communicator::all_reduce_ordered(const at::Tensor& in) {
  if (size() == 1) return in;
  const at::Tensor mine = in.contiguous();
  at::Tensor all = at::empty({size(), mine.numel()}, mine.options());
  all_gather(mine, all);
  at::Tensor sum = all[0].clone();
  for (int r = 1; r < size(); ++r) sum.add_(all[r]);
  return sum.view(in.sizes());
}

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<LocalCommunicator>(
      std::make_shared<Hub>(1, std::make_shared<std::atomic<bool>>(false)), 0, 1);
}

void run_local_ranks(int num_ranks,
                     const std::function<void(std::unique_ptr<Communicator>)>& body) {
  auto failed = std::make_shared<std::atomic<bool>>(false);
  auto hub = std::make_shared<Hub>(num_ranks, failed);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        body(std::make_unique<LocalCommunicator>(hub, r, num_ranks));
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
        *failed = true;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace maniple

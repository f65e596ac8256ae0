#include "parallel/nccl_communicator.h"

#include <ATen/Functions.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/errors.h"
#include "core/seconds_since.h"
#include "parallel/staged_communicator.h"

namespace maniple {
namespace {

using Clock = std::chrono::steady_clock;

// One NCCL communicator and its deadline. Shared by the communicator and its work under way.
class NcclHandle {
 public:
  NcclHandle(std::shared_ptr<Communicator> host, const ncclUniqueId& id, double deadline_s)
      : host_(std::move(host)), deadline_s_(deadline_s) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    settle("start", ncclCommInitRankConfig(&comm_, host_->size(), id, host_->rank(), &config));
  }
  // Destroying waits for the other ranks, which may be gone when the host's communicator has failed.
  ~NcclHandle() {
    if (!comm_) return;
    try {
      host_->check();
      ncclCommDestroy(comm_);
    } catch (const CommError&) {
      ncclCommAbort(comm_);
    }
  }
  NcclHandle(const NcclHandle&) = delete;

  ncclComm_t get(const char* what) {
    if (!comm_)
      throw CommError(fmt::format("NCCL {} on a communicator that was aborted before", what));
    return comm_;
  }
  // Waits until a call of NCCL has been taken: the stream then holds its kernels.
  void settle(const char* what, ncclResult_t result) {
    const auto start = Clock::now();
    while (result == ncclInProgress) {
      check_life(what, start);
      sched_yield();
      if (ncclCommGetAsyncError(comm_, &result) != ncclSuccess) result = ncclInternalError;
    }
    if (result != ncclSuccess) abort(what, ncclGetErrorString(result));
  }
  // Waits until the stream has passed `event`.
  void finish(const char* what, const at::cuda::CUDAEvent& event) {
    const auto start = Clock::now();
    while (!event.query()) {
      ncclResult_t result = ncclSuccess;
      if (ncclCommGetAsyncError(get(what), &result) != ncclSuccess) result = ncclInternalError;
      if (result != ncclSuccess && result != ncclInProgress)
        abort(what, ncclGetErrorString(result));
      check_life(what, start);
      sched_yield();
    }
  }

 private:
  void check_life(const char* what, Clock::time_point start) {
    try {
      host_->check();
    } catch (const CommError& error) {
      abort(what, error.what());
    }
    if (seconds_since(start) > deadline_s_)
      abort(what, fmt::format("not finished within {} s: a rank hangs or is gone", deadline_s_));
  }
  [[noreturn]] void abort(const char* what, const std::string& why) {
    if (comm_) ncclCommAbort(std::exchange(comm_, nullptr));
    const std::string reason = fmt::format("NCCL {} failed: {}", what, why);
    host_->fail(reason);
    throw CommError(reason);
  }

  const std::shared_ptr<Communicator> host_;
  ncclComm_t comm_ = nullptr;
  const double deadline_s_;
};

class NcclWork : public Work {
 public:
  NcclWork(const char* what, std::shared_ptr<NcclHandle> nccl)
      : what_(what), nccl_(std::move(nccl)) {
    event_.record(c10::cuda::getCurrentCUDAStream());
  }
  void wait() override { nccl_->finish(what_, event_); }

 private:
  const char* what_;
  std::shared_ptr<NcclHandle> nccl_;
  at::cuda::CUDAEvent event_;
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, double deadline_s)
      : host_(std::move(host)), deadline_s_(deadline_s) {
    at::Tensor bytes = at::zeros({sizeof(ncclUniqueId)}, at::TensorOptions(at::kByte));
    ncclUniqueId id;
    if (rank() == 0) {
      const ncclResult_t result = ncclGetUniqueId(&id);
      if (result != ncclSuccess)
        throw CommError(fmt::format("NCCL gives no id: {}", ncclGetErrorString(result)));
      std::memcpy(bytes.data_ptr(), &id, sizeof id);
    }
    host_->broadcast(bytes, 0);
    std::memcpy(&id, bytes.data_ptr(), sizeof id);
    nccl_ = std::make_shared<NcclHandle>(host_, id, deadline_s);
  }
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override {
    if (in.is_cpu()) return host_->begin_all_gather(in, out);
    return enqueue("all_gather", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllGather(in.data_ptr(), out.data_ptr(), in.nbytes(), ncclUint8, comm, stream);
    });
  }

  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override {
    if (in.is_cpu()) return host_->all_gather_v(in, out, counts);
    auto* to = static_cast<char*>(out.data_ptr());
    enqueue_group("all_gather_v", [&](int r, ncclComm_t comm, cudaStream_t stream) {
      const int64_t bytes = counts[r] * in.element_size();
      const ncclResult_t result =
          bytes ? ncclBroadcast(in.data_ptr(), to, bytes, ncclUint8, r, comm, stream) : ncclSuccess;
      to += bytes;
      return result;
    })->wait();
  }

  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override {
    if (in.is_cpu()) return host_->all_to_all_v(in, send_rows, out, recv_rows);
    int64_t row_bytes = in.element_size();
    for (int64_t d = 1; d < in.dim(); ++d) row_bytes *= in.size(d);
    const auto* from = static_cast<const char*>(in.data_ptr());
    auto* to = static_cast<char*>(out.data_ptr());
    enqueue_group("all_to_all_v", [&](int r, ncclComm_t comm, cudaStream_t stream) {
      const int64_t sent = send_rows[r] * row_bytes, received = recv_rows[r] * row_bytes;
      ncclResult_t result = ncclSuccess;
      if (sent) result = ncclSend(from, sent, ncclUint8, r, comm, stream);
      if (received && !failed(result))
        result = ncclRecv(to, received, ncclUint8, r, comm, stream);
      from += sent;
      to += received;
      return result;
    })->wait();
  }

  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override {
    if (in.is_cpu()) return host_->begin_reduce_scatter(in, out, counts);
    const auto* from = static_cast<const uint64_t*>(in.data_ptr());
    if (std::all_of(counts.begin(), counts.end(), [&](int64_t n) { return n == counts[0]; }))
      return enqueue("reduce_scatter", [&](ncclComm_t comm, cudaStream_t stream) {
        return ncclReduceScatter(from, out.data_ptr(), counts[0], ncclUint64, ncclSum, comm, stream);
      });
    return enqueue_group("reduce_scatter", [&](int r, ncclComm_t comm, cudaStream_t stream) {
      const ncclResult_t result =
          counts[r] ? ncclReduce(from, out.data_ptr(), counts[r], ncclUint64, ncclSum, r, comm, stream)
                    : ncclSuccess;
      from += counts[r];
      return result;
    });
  }

  void all_reduce(at::Tensor& t) override {
    if (t.is_cpu()) return host_->all_reduce(t);
    enqueue("all_reduce", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(t.data_ptr(), t.data_ptr(), t.numel(), ncclUint64, ncclSum, comm, stream);
    })->wait();
  }

  void broadcast(at::Tensor& t, int root) override {
    if (t.is_cpu()) return host_->broadcast(t, root);
    enqueue("broadcast", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclBroadcast(t.data_ptr(), t.data_ptr(), t.nbytes(), ncclUint8, root, comm, stream);
    })->wait();
  }

  void barrier() override { host_->barrier(); }
  void check() const override { host_->check(); }
  void fail(const std::string& reason) override { host_->fail(reason); }

  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_nccl_communicator(host_->split(color, key), deadline_s_);
  }

 private:
  static bool failed(ncclResult_t result) {
    return result != ncclSuccess && result != ncclInProgress;
  }

  // call(comm, stream) puts one operation on the current stream.
  template <typename Call>
  std::unique_ptr<Work> enqueue(const char* what, const Call& call) {
    nccl_->settle(what, call(nccl_->get(what), c10::cuda::getCurrentCUDAStream()));
    return std::make_unique<NcclWork>(what, nccl_);
  }

  // call(r, comm, stream) for every rank r of the communicator, all as one operation.
  template <typename Call>
  std::unique_ptr<Work> enqueue_group(const char* what, const Call& call) {
    const ncclComm_t comm = nccl_->get(what);
    ncclResult_t first = ncclGroupStart();
    for (int r = 0; r < size() && !failed(first); ++r)
      first = call(r, comm, c10::cuda::getCurrentCUDAStream());
    const ncclResult_t end = ncclGroupEnd();
    nccl_->settle(what, failed(first) ? first : end);
    return std::make_unique<NcclWork>(what, nccl_);
  }

  const std::shared_ptr<Communicator> host_;
  const double deadline_s_;
  std::shared_ptr<NcclHandle> nccl_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     double deadline_s) {
  if (host->size() == 1) return make_staged_communicator(std::move(host));
  return std::make_unique<NcclCommunicator>(std::move(host), deadline_s);
}

}  // namespace maniple

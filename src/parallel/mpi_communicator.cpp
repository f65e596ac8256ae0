#include <mpi.h>

#include <cstdlib>
#include <cstring>

#include "parallel/communicator.h"
#include "parallel/mpi_sum.h"
#include "parallel/mpi_wait.h"

namespace maniple {
namespace {

int to_int(int64_t n) {
  MANIPLE_INVARIANT(n >= 0 && n <= INT32_MAX, "{} elements do not fit one MPI message", n);
  return static_cast<int>(n);
}

MPI_Datatype mpi_type(int64_t bytes) {  // moved, never interpreted
  switch (bytes) {
    case 1: return MPI_BYTE;
    case 2: return MPI_INT16_T;
    case 4: return MPI_INT32_T;
    default: return MPI_INT64_T;
  }
}

class Request : public Work {
 public:
  Request(const char* what, double deadline_s) : what_(what), deadline_s_(deadline_s) {}
  ~Request() override {
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
  }
  void wait() override {
    wait_for(what_, deadline_s_, [&] {
      int done = 0;
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      return done != 0;
    });
  }
  MPI_Request request = MPI_REQUEST_NULL;
  std::vector<int> counts, offsets, counts2, offsets2;  // must outlive the operation

 private:
  const char* what_;
  double deadline_s_;
};

void prefix(const std::vector<int64_t>& parts, int64_t factor, std::vector<int>& counts,
            std::vector<int>& offsets) {
  int64_t at = 0;
  for (int64_t n : parts) {
    counts.push_back(to_int(n * factor));
    offsets.push_back(to_int(at));
    at += n * factor;
  }
}

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, double deadline_s, bool owned)
      : comm_(comm), deadline_s_(deadline_s), owned_(owned) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (owned_ && !finalized) MPI_Comm_free(&comm_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override {
    auto work = std::make_unique<Request>("all_gather", deadline_s_);
    const auto type = mpi_type(in.element_size());
    const int n = to_int(in.numel());
    MPI_Iallgather(in.data_ptr(), n, type, out.data_ptr(), n, type, comm_, &work->request);
    return work;
  }
  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override {
    std::vector<MPI_Request> requests;
    const auto type = mpi_type(in.element_size());
    const int tag = next_tag(), n = to_int(in.numel());
    auto* to = static_cast<char*>(out.data_ptr());
    char* mine = to;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_)
        mine = to;
      else if (counts[r])
        MPI_Irecv(to, to_int(counts[r]), type, r, tag, comm_, &requests.emplace_back());
      to += counts[r] * in.element_size();
    }
    for (int r = 0; r < size_; ++r)
      if (r != rank_ && n) MPI_Isend(in.data_ptr(), n, type, r, tag, comm_, &requests.emplace_back());
    if (n && mine != in.data_ptr()) std::memcpy(mine, in.data_ptr(), in.nbytes());
    wait_for("all_gather_v", deadline_s_, [&] {
      int done = 0;
      MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
      return done != 0;
    });
  }
  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override {
    Request work("all_to_all_v", deadline_s_);
    int64_t row = 1;
    for (int64_t d = 1; d < in.dim(); ++d) row *= in.size(d);
    prefix(send_rows, row, work.counts, work.offsets);
    prefix(recv_rows, row, work.counts2, work.offsets2);
    const auto type = mpi_type(in.element_size());
    MPI_Ialltoallv(in.data_ptr(), work.counts.data(), work.offsets.data(), type, out.data_ptr(),
                   work.counts2.data(), work.offsets2.data(), type, comm_, &work.request);
    work.wait();
  }
  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override {
    const auto span = [](const at::Tensor& t) {
      return std::span(static_cast<int64_t*>(t.data_ptr()), static_cast<size_t>(t.numel()));
    };
    return std::make_unique<MpiSum>(comm_, next_tag(), span(in), span(out), counts, deadline_s_);
  }
  bool overlaps() const override { return true; }
  void all_reduce(at::Tensor& t) override {
    Request work("all_reduce", deadline_s_);
    MPI_Iallreduce(MPI_IN_PLACE, t.data_ptr(), to_int(t.numel()), MPI_UINT64_T, MPI_SUM, comm_,
                   &work.request);
    work.wait();
  }
  void broadcast(at::Tensor& t, int root) override {
    Request work("broadcast", deadline_s_);
    MPI_Ibcast(t.data_ptr(), to_int(t.numel()), mpi_type(t.element_size()), root, comm_,
               &work.request);
    work.wait();
  }
  void barrier() override {
    Request work("barrier", deadline_s_);
    MPI_Ibarrier(comm_, &work.request);
    work.wait();
  }
  std::unique_ptr<Communicator> split(int color, int key) override {
    MPI_Comm child;
    MPI_Comm_split(comm_, color, key, &child);
    return std::make_unique<MpiCommunicator>(child, deadline_s_, true);
  }

 private:
  // Of one operation among the last ones; all ranks make the same calls in the same order.
  int next_tag() { return tag_ = tag_ % kMaxTag + 1; }
  static constexpr int kMaxTag = 32767;  // what every MPI allows

  MPI_Comm comm_;
  double deadline_s_;
  bool owned_;
  int tag_ = 0;
  int rank_ = 0, size_ = 1;
};

}  // namespace

bool started_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"})
    if (std::getenv(name)) return true;
  return false;
}

int rank_on_host() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

std::unique_ptr<Communicator> make_mpi_world(double deadline_s) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (!initialized) {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  }
  return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, deadline_s, false);
}

void finalize_mpi() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Finalize();
}

}  // namespace maniple

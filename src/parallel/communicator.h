// Message passing between the ranks of one axis of the mesh. Tensors are flat or row-major and
// contiguous. Every call is collective over the communicator: all of its ranks make the same calls
// in the same order. A call that does not finish within the deadline throws CommError. Those made
// below move host memory; extend_to_device (parallel/device.h) adds the memory of GPUs.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace maniple {

// A communication under way. Its tensors must stay alive and untouched until wait() returns.
class Work {
 public:
  virtual ~Work() = default;
  virtual void wait() = 0;
  // Moves on what needs this thread to move, without waiting.
  virtual void progress() {}
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out holds size() parts of in.numel() elements, in rank order.
  virtual std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) = 0;
  // Parts of counts[r] elements: out (counts.size() parts) holds rank r's in as part r, which may be
  // the same memory.
  virtual void all_gather_v(const at::Tensor& in, at::Tensor& out,
                            const std::vector<int64_t>& counts) = 0;
  // in: send_rows[r] rows (dim 0) for rank r, in rank order; out: recv_rows[r] rows from rank r.
  virtual void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows,
                            at::Tensor& out, const std::vector<int64_t>& recv_rows) = 0;
  // int64 sums modulo 2^64, so any algorithm gives the same bits. in holds counts[r] elements for
  // rank r; out the sum of this rank's part.
  virtual std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                                     const std::vector<int64_t>& counts) = 0;
  // Whether a begun sum gets on by calls of Work::progress() while this rank computes.
  virtual bool overlaps() const { return false; }
  virtual void all_reduce(at::Tensor& int64_tensor) = 0;
  virtual void broadcast(at::Tensor& tensor, int root) = 0;
  virtual void barrier() = 0;
  // Throws CommError when this communicator has failed for good, as the links of an elastic job have
  // after STOP. For transports that build on this one and have waits of their own.
  virtual void check() const {}
  // Makes it fail for good, here and at once, and at the other ranks where the transport tells them.
  virtual void fail(const std::string& /*reason*/) {}
  // Ranks of equal color form a new communicator, ordered by key.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  void all_gather(const at::Tensor& in, at::Tensor& out) { begin_all_gather(in, out)->wait(); }
  // Floating-point sum in rank order: every rank gets the same bits, whatever the transport does.
  at::Tensor all_reduce_ordered(const at::Tensor& in);
};

// The only rank of a world of one.
std::unique_ptr<Communicator> make_single_communicator();

// MPI's world; initialises MPI on first use (main thread only). deadline_s bounds every call.
std::unique_ptr<Communicator> make_mpi_world(double deadline_s);
void finalize_mpi();  // no-op when MPI was never initialised
// True when this process was started by mpirun (or another launcher that sets its environment).
bool started_by_mpi();
// This rank's number among those on its host, as the launcher says it; 0 without one.
int rank_on_host();

// Runs `body` in num_ranks threads, each with a communicator over all of them. An exception in one
// of them makes the waits of all others throw CommError; the first one is rethrown.
void run_local_ranks(int num_ranks, const std::function<void(std::unique_ptr<Communicator>)>& body);

}  // namespace maniple

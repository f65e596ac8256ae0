#include "parallel/staged_communicator.h"

namespace maniple {
namespace {

// A tensor itself, or host memory for one on a GPU.
at::Tensor host_like(const at::Tensor& t) {
  if (t.is_cpu()) return t;
  return at::empty(t.sizes(), t.options().device(at::kCPU).pinned_memory(true));
}
at::Tensor to_host(const at::Tensor& t) {
  return t.is_cpu() ? t : host_like(t).copy_(t);  // waits for the GPU
}

// Copies what arrived to the GPU.
void deliver(const at::Tensor& host, at::Tensor& out) {
  if (!out.is_cpu()) out.copy_(host);
}

class StagedWork : public Work {
 public:
  StagedWork(const at::Tensor& in, const at::Tensor& out)
      : in(to_host(in)), host_out(host_like(out)), out_(out) {}
  void wait() override {
    under_way->wait();
    deliver(host_out, out_);
  }
  at::Tensor in, host_out;
  std::unique_ptr<Work> under_way;  // ends before its tensors

 private:
  at::Tensor out_;
};

class StagedCommunicator : public Communicator {
 public:
  explicit StagedCommunicator(std::unique_ptr<Communicator> host) : host_(std::move(host)) {}
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override {
    auto work = std::make_unique<StagedWork>(in, out);
    work->under_way = host_->begin_all_gather(work->in, work->host_out);
    return work;
  }
  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override {
    at::Tensor host_out = host_like(out);
    host_->all_gather_v(to_host(in), host_out, counts);
    deliver(host_out, out);
  }
  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override {
    at::Tensor host_out = host_like(out);
    host_->all_to_all_v(to_host(in), send_rows, host_out, recv_rows);
    deliver(host_out, out);
  }
  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override {
    auto work = std::make_unique<StagedWork>(in, out);
    work->under_way = host_->begin_reduce_scatter(work->in, work->host_out, counts);
    return work;
  }
  void all_reduce(at::Tensor& t) override {
    at::Tensor host = to_host(t);
    host_->all_reduce(host);
    deliver(host, t);
  }
  void broadcast(at::Tensor& t, int root) override {
    at::Tensor host = to_host(t);
    host_->broadcast(host, root);
    deliver(host, t);
  }
  void barrier() override { host_->barrier(); }
  void check() const override { host_->check(); }
  void fail(const std::string& reason) override { host_->fail(reason); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_staged_communicator(host_->split(color, key));
  }

 private:
  std::unique_ptr<Communicator> host_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host) {
  return std::make_unique<StagedCommunicator>(std::move(host));
}

}  // namespace maniple

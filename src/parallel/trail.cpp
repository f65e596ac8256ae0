#include "parallel/trail.h"

#include <fmt/format.h>

#include "parallel/tensor_hash.h"

namespace maniple {
namespace {

class RecordedCommunicator : public Communicator {
 public:
  RecordedCommunicator(std::unique_ptr<Communicator> inner, Trail& trail)
      : inner_(std::move(inner)), trail_(trail) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override {
    trail_.send(in);
    return inner_->begin_all_gather(in, out);
  }
  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override {
    trail_.send(in);
    inner_->all_gather_v(in, out, counts);
  }
  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override {
    trail_.send(in);
    inner_->all_to_all_v(in, send_rows, out, recv_rows);
  }
  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override {
    trail_.send(in);
    return inner_->begin_reduce_scatter(in, out, counts);
  }
  void all_reduce(at::Tensor& int64_tensor) override {
    trail_.send(int64_tensor);
    inner_->all_reduce(int64_tensor);
  }
  void broadcast(at::Tensor& tensor, int root) override {
    if (root == rank()) trail_.send(tensor);
    inner_->broadcast(tensor, root);
  }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return inner_->split(color, key);
  }

 private:
  std::unique_ptr<Communicator> inner_;
  Trail& trail_;
};

}  // namespace

void Trail::start() {
  points_.clear();
  recording_ = true;
}

std::vector<Trail::Point> Trail::stop() {
  recording_ = false;
  return std::move(points_);
}

void Trail::reach_layer(int64_t layer, const at::Tensor& input) {
  layer_ = layer;
  if (recording_) add(Kind::kInput, input);
}

void Trail::send(const at::Tensor& data) {
  if (recording_) add(Kind::kSent, data);
}

void Trail::end_unit(const std::function<uint64_t()>& gradient_hash) {
  if (recording_) points_.push_back({Kind::kGradient, layer_, gradient_hash()});
}

void Trail::end_step(const std::function<uint64_t()>& sums_hash) {
  if (recording_) points_.push_back({Kind::kSums, layer_, sums_hash()});
}

void Trail::add(Kind kind, const at::Tensor& data) {
  points_.push_back({kind, layer_, tensor_hash(data)});
}

std::string describe(const Trail::Point& point) {
  switch (point.kind) {
    case Trail::Kind::kInput:
      return fmt::format("the input of layer {}", point.layer);
    case Trail::Kind::kSent:
      return fmt::format("what it sends to its slice after the input of layer {}", point.layer);
    case Trail::Kind::kGradient:
      return "the gradient";
    case Trail::Kind::kSums:
      break;
  }
  return "the sums of the gradients";
}

std::unique_ptr<Communicator> make_recorded(std::unique_ptr<Communicator> inner, Trail& trail) {
  return std::make_unique<RecordedCommunicator>(std::move(inner), trail);
}

}  // namespace maniple

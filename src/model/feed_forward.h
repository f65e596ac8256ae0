// The feed-forward half of a decoder layer, as the decoder sees it, and the dense one.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "model/model_config.h"
#include "parallel/layers.h"

namespace maniple {

at::Tensor activate(Activation activation, const at::Tensor& x);

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  // x_BSD -> [B, S, D].
  virtual at::Tensor forward(const at::Tensor& x_BSD) = 0;
};

// y = W_down (act(W_gate x) * W_up x), the width split over tp. Collective over tp.
class DenseFeedForward : public FeedForward {
 public:
  DenseFeedForward(const ModelConfig& model, const std::string& prefix, int64_t width,
                   ParameterStore& store);
  at::Tensor forward(const at::Tensor& x_BSD) override;

 private:
  const Activation activation_;
  Communicator& tp_;
  Parameter *gate_, *up_, *down_;
};

}  // namespace maniple

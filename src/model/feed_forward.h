// The feed-forward half of a decoder layer, as the decoder sees it, and the dense one.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "model/model_config.h"
#include "parallel/layers.h"

namespace maniple {

// What goes into and comes out of one forward of a layer beside its activations.
struct LayerPass {
  bool again = false;  // recomputation: sums and counts were taken the first time
  at::Tensor loss;     // out: the layer's own loss, a sum over tokens (undefined: none)
};

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  // x_BSD -> [B, S, D].
  virtual at::Tensor forward(const at::Tensor& x_BSD, LayerPass& pass) = 0;
};

// One gated feed-forward network: act(W_gate x) * W_up x, then W_down. F width, D model.
struct GatedWeights {
  at::Tensor in;                     // [2F, D]: gate over up
  std::vector<at::Tensor> in_grads;  // [2F, D], or [F, D] twice
  at::Tensor down, down_grad;        // [D, F]
};
// Rows of x_ND belong to networks[0] (counts[0] of them), networks[1] and so on; empty ones are
// legal. weight_N (accumulation type, or undefined: 1) multiplies before the second product. All
// products of a kind run in one parallel region; backward adds to the gradients. `networks` must
// live until backward, unchanged. `again` makes x_ND once more, the same bits: where it is given, x_ND
// is not kept for backward.
at::Tensor gated_feed_forward(const at::Tensor& x_ND, const at::Tensor& weight_N,
                              const std::vector<int64_t>& counts, std::vector<GatedWeights>& networks,
                              Activation activation, std::function<at::Tensor()> again = {});

// y = W_down (act(W_gate x) * W_up x), the width split over tp. Collective over tp.
class DenseFeedForward : public FeedForward {
 public:
  DenseFeedForward(const ModelConfig& model, const std::string& prefix, int64_t width,
                   ParameterStore& store);
  at::Tensor forward(const at::Tensor& x_BSD, LayerPass&) override { return forward(x_BSD); }
  at::Tensor forward(const at::Tensor& x_BSD);

 private:
  const Activation activation_;
  Communicator& tp_;
  Parameter *gate_, *up_, *down_;
  std::vector<GatedWeights> networks_;  // one; made when the store has been allocated
};

}  // namespace maniple

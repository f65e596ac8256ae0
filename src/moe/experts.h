// The routed experts that this rank holds, applied to tokens sorted by expert.
// Shape letters: N token slots received, D model, F this rank's expert width, L local experts.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/model_config.h"
#include "model/feed_forward.h"
#include "parallel/layers.h"

namespace maniple {

class Experts {
 public:
  Experts(const ModelConfig& model, const std::string& prefix, ParameterStore& store);

  // x_ND sorted by local expert, counts[e] rows for each; weight_N (accumulation type) multiplies
  // before the second product: y = W_down (p act(W_gate x) * W_up x). With etp > 1 a partial sum.
  // Experts without tokens are legal and get a zero gradient. `again`: see gated_feed_forward.
  at::Tensor forward(const at::Tensor& x_ND, const at::Tensor& weight_N,
                     const std::vector<int64_t>& counts, std::function<at::Tensor()> again = {});
  int64_t num_local() const { return num_local_; }

 private:
  const Activation activation_;
  int64_t num_local_;
  Parameter *gate_up_, *down_;  // [L, 2, F, D], [L, D, F]
  std::vector<GatedWeights> networks_;  // made when the store has been allocated
};

}  // namespace maniple

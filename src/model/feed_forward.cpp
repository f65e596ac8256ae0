#include "model/feed_forward.h"

#include "core/errors.h"

namespace maniple {

at::Tensor activate(Activation activation, const at::Tensor& x) {
  return activation == Activation::kSilu ? at::silu(x) : at::gelu(x, "tanh");
}

DenseFeedForward::DenseFeedForward(const ModelConfig& model, const std::string& prefix,
                                   int64_t width, ParameterStore& store)
    : activation_(model.activation), tp_(store.mesh().tp()) {
  const int64_t tp = store.mesh().shape().tp, index = store.mesh().tp_index();
  MANIPLE_INVARIANT(width % tp == 0, "width {}, tp {}", width, tp);
  const Init normal{Init::kNormal, model.initializer_range};
  const int64_t D = model.hidden_size;
  gate_ = &store.add(prefix + "gate_proj.weight", {width, D}, GradGroup::kSharded, {{0, index, tp}}, normal);
  up_ = &store.add(prefix + "up_proj.weight", {width, D}, GradGroup::kSharded, {{0, index, tp}}, normal);
  down_ = &store.add(prefix + "down_proj.weight", {D, width}, GradGroup::kSharded, {{1, index, tp}}, normal);
}

at::Tensor DenseFeedForward::forward(const at::Tensor& x_in) {
  const at::Tensor x = enter_tensor_parallel(x_in, tp_);
  return leave_tensor_parallel(
      linear(activate(activation_, linear(x, *gate_)) * linear(x, *up_), *down_), tp_);
}

}  // namespace maniple

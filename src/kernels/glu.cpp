#include "kernels/glu.h"

#include "kernels/fused.h"
#include "kernels/parallel_tasks.h"

#define MANIPLE_BODIES "kernels/glu_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 32;

template <typename T, Activation A>
void forward(const at::Tensor& h, const at::Tensor& weight, at::Tensor& y) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  const auto* from = static_cast<const T*>(h.const_data_ptr());
  const float* p = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  auto* to = static_cast<T*>(y.data_ptr());
  parallel_ranges(N, kGroupRows, [&](int64_t begin, int64_t end) {
    with_isa([&](auto bodies) { bodies.template forward_rows<T, A>(from + begin * 2 * F, p ? p + begin : nullptr, to + begin * F,
                                end - begin, F); });
  });
}

template <typename T, Activation A>
void backward(const at::Tensor& dy, at::Tensor& h, const at::Tensor& weight, at::Tensor& dweight) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  const auto* g = static_cast<const T*>(dy.const_data_ptr());
  auto* at_row = static_cast<T*>(h.data_ptr());
  const float* p = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  float* dp = p ? dweight.data_ptr<float>() : nullptr;
  parallel_ranges(N, kGroupRows, [&](int64_t begin, int64_t end) {
    with_isa([&](auto bodies) { bodies.template backward_rows<T, A>(g + begin * F, at_row + begin * 2 * F, p ? p + begin : nullptr,
                                 dp ? dp + begin : nullptr, end - begin, F); });
  });
}

// Calls body(storage type, activation) as template arguments.
template <typename Body>
void with_kinds(at::ScalarType type, Activation activation, const Body& body) {
  const bool silu = activation == Activation::kSilu;
  if (type == at::kFloat)
    silu ? body.template operator()<float, Activation::kSilu>()
         : body.template operator()<float, Activation::kGeluTanh>();
  else
    silu ? body.template operator()<bf16_t, Activation::kSilu>()
         : body.template operator()<bf16_t, Activation::kGeluTanh>();
}

}  // namespace

at::Tensor activate(Activation activation, const at::Tensor& x) {
  return activation == Activation::kSilu ? at::silu(x) : at::gelu(x, "tanh");
}

at::Tensor glu_forward(Activation activation, const at::Tensor& h, const at::Tensor& weight) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  if (runs_fused(h)) {
    at::Tensor y = at::empty({N, F}, h.options());
    with_kinds(h.scalar_type(), activation,
               [&]<typename T, Activation A>() { forward<T, A>(h, weight, y); });
    return y;
  }
  const at::Tensor a = activate(activation, h.narrow(1, 0, F)) * h.narrow(1, F, F);
  return weight.defined() ? (a * weight.unsqueeze(1)).to(h.scalar_type()) : a;
}

at::Tensor glu_backward(Activation activation, const at::Tensor& dy, at::Tensor h,
                        const at::Tensor& weight) {
  const int64_t F = h.size(1) / 2;
  at::Tensor dweight;
  if (runs_fused(h)) {
    if (weight.defined()) dweight = at::empty({h.size(0)}, weight.options());
    with_kinds(h.scalar_type(), activation,
               [&]<typename T, Activation A>() { backward<T, A>(dy, h, weight, dweight); });
    return dweight;
  }
  const at::Tensor gate = h.narrow(1, 0, F), up = h.narrow(1, F, F), act = activate(activation, gate);
  at::Tensor da = dy;
  if (weight.defined()) {
    dweight = (dy.to(weight.scalar_type()) * (act * up).to(weight.scalar_type())).sum(1);
    da = (dy * weight.unsqueeze(1)).to(h.scalar_type());
  }
  const at::Tensor dact = da * up;
  up.copy_(da * act);
  gate.copy_(activation == Activation::kSilu ? at::silu_backward(dact, gate)
                                             : at::gelu_backward(dact, gate, "tanh"));
  return dweight;
}

}  // namespace maniple

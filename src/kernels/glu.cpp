#include "kernels/glu.h"

#include "kernels/parallel_tasks.h"
#include "kernels/simd.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 32;

struct Values {
  Vec value, slope;
};

// act(x) and act'(x).
template <Activation A>
MANIPLE_INLINE Values activation_of(Vec x) {
  if constexpr (A == Activation::kSilu) {
    const Vec s = 1.0f / (1.0f + exp_of(-x));
    return {x * s, s * (1.0f + x * (1.0f - s))};
  } else {  // 0.5 x (1 + tanh(z)), z = sqrt(2 / pi) (x + 0.044715 x^3); (1 + tanh z) / 2 = 1 / (1 + e^-2z)
    constexpr float kRoot = 0.7978845608f, kCubic = 0.044715f;
    const Vec z = kRoot * (x + kCubic * x * x * x);
    const Vec s = 1.0f / (1.0f + exp_of(-2.0f * z));
    const Vec dz = kRoot * (1.0f + 3.0f * kCubic * x * x);
    return {x * s, s + 2.0f * x * s * (1.0f - s) * dz};
  }
}

template <typename T, Activation A>
struct ForwardBody {
  MANIPLE_INLINE static int run(const T* h, const float* weight, T* y, int64_t rows, int64_t F) {
    for (int64_t r = 0; r < rows; ++r, h += 2 * F, y += F) {
      const float p = weight ? weight[r] : 1.0f;
      for (int64_t i = 0; i < F; i += kLanes) {
        const Vec gate = load_upto(h + i, F - i), up = load_upto(h + F + i, F - i);
        store_upto(y + i, activation_of<A>(gate).value * up * p, F - i);
      }
    }
    return 0;
  }
};

template <typename T, Activation A>
struct BackwardBody {
  MANIPLE_INLINE static int run(const T* dy, const T* h, const float* weight, T* dh, float* dweight,
                                int64_t rows, int64_t F) {
    for (int64_t r = 0; r < rows; ++r, h += 2 * F, dh += 2 * F, dy += F) {
      const float p = weight ? weight[r] : 1.0f;
      Vec dots = {};
      for (int64_t i = 0; i < F; i += kLanes) {
        const Vec gate = load_upto(h + i, F - i), up = load_upto(h + F + i, F - i);
        const Vec g = load_upto(dy + i, F - i);
        const Values a = activation_of<A>(gate);
        dots += g * a.value * up;
        const Vec scaled = g * p;
        store_upto(dh + i, scaled * up * a.slope, F - i);
        store_upto(dh + F + i, scaled * a.value, F - i);
      }
      if (dweight) dweight[r] = sum_of(dots);
    }
    return 0;
  }
};

template <typename T, Activation A>
void forward(const at::Tensor& h, const at::Tensor& weight, at::Tensor& y) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  const auto* from = static_cast<const T*>(h.const_data_ptr());
  const float* p = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  auto* to = static_cast<T*>(y.data_ptr());
  parallel_ranges(N, kGroupRows, [&](int64_t begin, int64_t end) {
    dispatch<ForwardBody<T, A>>(from + begin * 2 * F, p ? p + begin : nullptr, to + begin * F,
                                end - begin, F);
  });
}

template <typename T, Activation A>
void backward(const at::Tensor& dy, const at::Tensor& h, const at::Tensor& weight, GluGradients& out) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  const auto *g = static_cast<const T*>(dy.const_data_ptr()), *from = static_cast<const T*>(h.const_data_ptr());
  auto* dh = static_cast<T*>(out.h.data_ptr());
  const float* p = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  float* dp = p ? out.weight.data_ptr<float>() : nullptr;
  parallel_ranges(N, kGroupRows, [&](int64_t begin, int64_t end) {
    dispatch<BackwardBody<T, A>>(g + begin * F, from + begin * 2 * F, p ? p + begin : nullptr,
                                 dh + begin * 2 * F, dp ? dp + begin : nullptr, end - begin, F);
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

bool fused(const at::Tensor& h) {
  return h.is_cpu() && (h.scalar_type() == at::kFloat || h.scalar_type() == at::kBFloat16);
}

}  // namespace

at::Tensor activate(Activation activation, const at::Tensor& x) {
  return activation == Activation::kSilu ? at::silu(x) : at::gelu(x, "tanh");
}

at::Tensor glu_forward(Activation activation, const at::Tensor& h, const at::Tensor& weight) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  if (fused(h)) {
    at::Tensor y = at::empty({N, F}, h.options());
    with_kinds(h.scalar_type(), activation,
               [&]<typename T, Activation A>() { forward<T, A>(h, weight, y); });
    return y;
  }
  const at::Tensor a = activate(activation, h.narrow(1, 0, F)) * h.narrow(1, F, F);
  return weight.defined() ? (a * weight.unsqueeze(1)).to(h.scalar_type()) : a;
}

GluGradients glu_backward(Activation activation, const at::Tensor& dy, const at::Tensor& h,
                          const at::Tensor& weight) {
  const int64_t N = h.size(0), F = h.size(1) / 2;
  GluGradients out{at::empty_like(h), {}};
  if (fused(h)) {
    if (weight.defined()) out.weight = at::empty({N}, weight.options());
    with_kinds(h.scalar_type(), activation,
               [&]<typename T, Activation A>() { backward<T, A>(dy, h, weight, out); });
    return out;
  }
  const at::Tensor gate = h.narrow(1, 0, F), up = h.narrow(1, F, F), act = activate(activation, gate);
  at::Tensor da = dy;
  if (weight.defined()) {
    out.weight = (dy.to(weight.scalar_type()) * (act * up).to(weight.scalar_type())).sum(1);
    da = (dy * weight.unsqueeze(1)).to(h.scalar_type());
  }
  const at::Tensor dact = da * up;
  out.h.narrow(1, 0, F).copy_(activation == Activation::kSilu ? at::silu_backward(dact, gate)
                                                              : at::gelu_backward(dact, gate, "tanh"));
  out.h.narrow(1, F, F).copy_(da * act);
  return out;
}

}  // namespace maniple

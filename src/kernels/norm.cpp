#include "kernels/norm.h"

#include "kernels/fused.h"
#include "kernels/parallel_tasks.h"

#define MANIPLE_BODIES "kernels/norm_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 64;  // whose weight gradient is summed by one task

// The factor of u, as the forward rounds it.
at::Tensor factor_of(const at::Tensor& w, at::ScalarType type, at::ScalarType wide, bool plus_one) {
  return plus_one ? w.to(wide) + 1 : w.to(type).to(wide);
}

template <typename T>
void forward(const at::Tensor& x, const at::Tensor& w, RmsNormResult& out, double eps, bool plus_one) {
  const int64_t R = x.size(0), D = x.size(1);
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  auto* y = static_cast<T*>(out.y.data_ptr());
  parallel_ranges(R, kGroupRows, [&](int64_t begin, int64_t end) {
    with_isa([&](auto bodies) { bodies.template forward_rows<T>(from + begin * D, w.const_data_ptr<float>(), y + begin * D,
                             out.rstd.data_ptr<float>() + begin, end - begin, D,
                             static_cast<float>(eps), plus_one); });
  });
}

template <typename T>
void backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd, const at::Tensor& w,
              at::Tensor& dx, at::Tensor& partial) {
  const int64_t R = x.size(0), D = x.size(1);
  const auto *gradient = static_cast<const T*>(dy.const_data_ptr()),
             *from = static_cast<const T*>(x.const_data_ptr());
  parallel_ranges(R, kGroupRows, [&](int64_t begin, int64_t end) {
    with_isa([&](auto bodies) { bodies.template backward_rows<T>(gradient + begin * D, from + begin * D,
                              rstd.const_data_ptr<float>() + begin, w.const_data_ptr<float>(),
                              static_cast<T*>(dx.data_ptr()) + begin * D,
                              partial.data_ptr<float>() + begin / kGroupRows * D, end - begin, D); });
  });
}

}  // namespace

RmsNormResult rms_norm_forward(const at::Tensor& x, const at::Tensor& w, double eps, bool plus_one) {
  const auto type = x.scalar_type(), wide = type == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor factor = factor_of(w, type, wide, plus_one);
  if (runs_fused(x)) {
    RmsNormResult out{at::empty_like(x), at::empty({x.size(0)}, x.options().dtype(wide))};
    if (type == at::kFloat)
      forward<float>(x, factor, out, eps, plus_one);
    else
      forward<bf16_t>(x, factor, out, eps, plus_one);
    return out;
  }
  const at::Tensor xw = x.to(wide);
  const at::Tensor rstd = (xw.square().mean(-1) + eps).rsqrt();
  const at::Tensor u = xw * rstd.unsqueeze(1);
  return {plus_one ? (u * factor).to(type) : u.to(type) * factor.to(type), rstd};
}

at::Tensor rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd,
                             const at::Tensor& w, bool plus_one, at::Tensor& dw) {
  const auto type = x.scalar_type(), wide = rstd.scalar_type();
  const at::Tensor factor = factor_of(w, type, wide, plus_one);
  if (runs_fused(x)) {
    at::Tensor dx = at::empty_like(x);
    at::Tensor partial = at::zeros({(x.size(0) + kGroupRows - 1) / kGroupRows, x.size(1)}, rstd.options());
    if (type == at::kFloat)
      backward<float>(dy, x, rstd, factor, dx, partial);
    else
      backward<bf16_t>(dy, x, rstd, factor, dx, partial);
    dw.add_(partial.sum(0));
    return dx;
  }
  const at::Tensor u = x.to(wide) * rstd.unsqueeze(1), g = dy.to(wide), du = g * factor;
  dw.add_((g * u).sum(0));
  return (rstd.unsqueeze(1) * (du - u * (du * u).mean(-1, true))).to(type);
}

}  // namespace maniple

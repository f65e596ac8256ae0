#include "kernels/rope.h"

#include "kernels/fused.h"
#include "kernels/parallel_tasks.h"

#define MANIPLE_BODIES "kernels/rope_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

template <typename T>
void run(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse, at::Tensor& y) {
  const int64_t positions = x.size(0) * x.size(1), H = x.size(2), half = x.size(3) / 2;
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  const auto *c = static_cast<const T*>(cos.const_data_ptr()), *s = static_cast<const T*>(sin.const_data_ptr());
  auto* to = static_cast<T*>(y.data_ptr());
  parallel_ranges(positions, 64, [&](int64_t begin, int64_t end) {
    const int64_t row = H * 2 * half;
    with_isa([&](auto bodies) { bodies.template rotate_heads<T>(from + begin * row, c + begin * half, s + begin * half,
                            inverse ? -1.0f : 1.0f, to + begin * row, end - begin, H, half); });
  });
}

}  // namespace

at::Tensor rotate(const at::Tensor& x_in, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const at::Tensor x = x_in.contiguous();
  if (runs_fused(x)) {
    at::Tensor y = at::empty_like(x);
    if (x.scalar_type() == at::kFloat)
      run<float>(x, cos.contiguous(), sin.contiguous(), inverse, y);
    else
      run<bf16_t>(x, cos.contiguous(), sin.contiguous(), inverse, y);
    return y;
  }
  const auto halves = x.chunk(2, -1);
  const at::Tensor c = cos.unsqueeze(2), s = inverse ? -sin.unsqueeze(2) : sin.unsqueeze(2);
  return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1);
}

}  // namespace maniple

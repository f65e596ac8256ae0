#include "kernels/rope.h"

#include "kernels/parallel_tasks.h"
#include "kernels/simd.h"

namespace maniple {
namespace {

template <typename T>
struct RotateBody {
  MANIPLE_INLINE static int run(const T* x, const T* cos, const T* sin, float sign, T* y,
                                int64_t positions, int64_t heads, int64_t half) {
    for (int64_t s = 0; s < positions; ++s, cos += half, sin += half)
      for (int64_t h = 0; h < heads; ++h, x += 2 * half, y += 2 * half)
        for (int64_t i = 0; i < half; i += kLanes) {
          const int64_t n = half - i;
          const Vec c = load_upto(cos + i, n), t = load_upto(sin + i, n) * sign;
          const Vec a = load_upto(x + i, n), b = load_upto(x + half + i, n);
          store_upto(y + i, a * c - b * t, n);
          store_upto(y + half + i, b * c + a * t, n);
        }
    return 0;
  }
};

template <typename T>
void run(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse, at::Tensor& y) {
  const int64_t positions = x.size(0) * x.size(1), H = x.size(2), half = x.size(3) / 2;
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  const auto *c = static_cast<const T*>(cos.const_data_ptr()), *s = static_cast<const T*>(sin.const_data_ptr());
  auto* to = static_cast<T*>(y.data_ptr());
  parallel_ranges(positions, 64, [&](int64_t begin, int64_t end) {
    const int64_t row = H * 2 * half;
    dispatch<RotateBody<T>>(from + begin * row, c + begin * half, s + begin * half,
                            inverse ? -1.0f : 1.0f, to + begin * row, end - begin, H, half);
  });
}

}  // namespace

at::Tensor rotate(const at::Tensor& x_in, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const at::Tensor x = x_in.contiguous();
  const auto type = x.scalar_type();
  if (x.is_cpu() && (type == at::kFloat || type == at::kBFloat16)) {
    at::Tensor y = at::empty_like(x);
    if (type == at::kFloat)
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

#include "kernels/softmax_loss.h"

#include <limits>

#include "kernels/parallel_tasks.h"

#define MANIPLE_BODIES "kernels/softmax_loss_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 4;

bool fused(const at::Tensor& z) { return z.is_cpu() && z.scalar_type() == at::kFloat; }

}  // namespace

SoftmaxStats softmax_stats(const at::Tensor& z, const at::Tensor& column) {
  const int64_t n = z.size(0), V = z.size(1);
  if (fused(z)) {
    SoftmaxStats s{at::empty({n}, z.options()), at::empty({n}, z.options()), at::empty({n}, z.options())};
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      with_isa([&](auto bodies) { bodies.stats(z.const_data_ptr<float>() + begin * V, column.const_data_ptr<int64_t>() + begin,
                          s.top.data_ptr<float>() + begin, s.total.data_ptr<float>() + begin,
                          s.chosen.data_ptr<float>() + begin, end - begin, V); });
    });
    return s;
  }
  const at::Tensor top = std::get<0>(z.max(1));
  const at::Tensor chosen = z.gather(1, column.clamp_min(0).unsqueeze(1)).squeeze(1);
  return {top, (z - top.unsqueeze(1)).exp().sum(1), chosen * (column >= 0)};
}

at::Tensor softmax_gradient(const at::Tensor& z, const at::Tensor& top, const at::Tensor& factor,
                            const at::Tensor& column, double target_factor, at::ScalarType type) {
  const int64_t n = z.size(0), V = z.size(1);
  if (fused(z) && (type == at::kFloat || type == at::kBFloat16)) {
    at::Tensor dz = at::empty({n, V}, z.options().dtype(type));
    auto run = [&]<typename T>() {
      parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
        with_isa([&](auto bodies) { bodies.template gradient<T>(z.const_data_ptr<float>() + begin * V, top.const_data_ptr<float>() + begin,
                                  factor.const_data_ptr<float>() + begin,
                                  column.const_data_ptr<int64_t>() + begin,
                                  static_cast<float>(target_factor),
                                  static_cast<T*>(dz.data_ptr()) + begin * V, end - begin, V); });
      });
    };
    if (type == at::kFloat)
      run.operator()<float>();
    else
      run.operator()<bf16_t>();
    return dz;
  }
  at::Tensor dz = (z - top.unsqueeze(1)).exp() * factor.unsqueeze(1);
  dz.scatter_add_(1, column.clamp_min(0).unsqueeze(1),
                  ((column >= 0).to(z.scalar_type()) * -target_factor).unsqueeze(1));
  return dz.to(type);
}

}  // namespace maniple

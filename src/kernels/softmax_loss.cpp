#include "kernels/softmax_loss.h"

#include <limits>

#include "kernels/parallel_tasks.h"
#include "kernels/simd.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 4;

struct StatsBody {
  MANIPLE_INLINE static int run(const float* z, const int64_t* column, float* top, float* total,
                                float* chosen, int64_t rows, int64_t V) {
    for (int64_t r = 0; r < rows; ++r, z += V) {
      Vec tops = splat(z[0]);
      int64_t i = 0;
      for (; i + kLanes <= V; i += kLanes) tops = max_of(tops, load(z + i));
      float m = max_of(tops);
      for (; i < V; ++i) m = z[i] > m ? z[i] : m;
      Vec sums = {};
      for (i = 0; i + kLanes <= V; i += kLanes) sums += exp_of(load(z + i) - m);
      if (i < V) {
        float rest[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) rest[l] = i + l < V ? z[i + l] : -1e30f;
        sums += exp_of(load(rest) - m);
      }
      top[r] = m;
      total[r] = sum_of(sums);
      chosen[r] = column[r] >= 0 ? z[column[r]] : 0;
    }
    return 0;
  }
};

template <typename T>
struct GradientBody {
  MANIPLE_INLINE static int run(const float* z, const float* top, const float* factor,
                                const int64_t* column, float target_factor, T* dz, int64_t rows,
                                int64_t V) {
    for (int64_t r = 0; r < rows; ++r, z += V, dz += V) {
      for (int64_t i = 0; i < V; i += kLanes)
        store_upto(dz + i, exp_of(load_upto(z + i, V - i) - top[r]) * factor[r], V - i);
      if (const int64_t c = column[r]; c >= 0) {
        float part[kLanes] = {z[c]};
        store(part, exp_of(load(part) - top[r]) * factor[r]);
        dz[c] = from_float<T>(part[0] - target_factor);
      }
    }
    return 0;
  }
};

bool fused(const at::Tensor& z) { return z.is_cpu() && z.scalar_type() == at::kFloat; }

}  // namespace

SoftmaxStats softmax_stats(const at::Tensor& z, const at::Tensor& column) {
  const int64_t n = z.size(0), V = z.size(1);
  if (fused(z)) {
    SoftmaxStats s{at::empty({n}, z.options()), at::empty({n}, z.options()), at::empty({n}, z.options())};
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      dispatch<StatsBody>(z.const_data_ptr<float>() + begin * V, column.const_data_ptr<int64_t>() + begin,
                          s.top.data_ptr<float>() + begin, s.total.data_ptr<float>() + begin,
                          s.chosen.data_ptr<float>() + begin, end - begin, V);
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
        dispatch<GradientBody<T>>(z.const_data_ptr<float>() + begin * V, top.const_data_ptr<float>() + begin,
                                  factor.const_data_ptr<float>() + begin,
                                  column.const_data_ptr<int64_t>() + begin,
                                  static_cast<float>(target_factor),
                                  static_cast<T*>(dz.data_ptr()) + begin * V, end - begin, V);
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

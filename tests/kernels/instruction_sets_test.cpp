// The copies of a body for the instruction sets give the same bits where the compiler may not
// contract (this file; the lanes and their order are in the source).
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/glu.h"

#define MANIPLE_BODIES "kernels/glu_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

template <typename Bodies>
std::vector<float> exponentials(const std::vector<float>& x) {
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); i += 16) {
    typename Bodies::Vec v;
    std::memcpy(&v, &x[i], sizeof v);
    v = Bodies::exp_of(v);
    std::memcpy(&y[i], &v, sizeof v);
  }
  return y;
}

template <typename Bodies>
std::vector<float> gradients(std::vector<float> h, int64_t rows, int64_t F) {
  std::vector<float> dy(rows * F, 0.7f), weight(rows, 0.3f), dweight(rows);
  Bodies::template backward_rows<float, Activation::kGeluTanh>(dy.data(), h.data(), weight.data(),
                                                               dweight.data(), rows, F);
  h.insert(h.end(), dweight.begin(), dweight.end());
  return h;
}

TEST(InstructionSets, ExponentialIsAccurate) {
  std::vector<float> x;
  for (int i = 0; i < 16000; ++i) x.push_back(-90.0f + 0.011f * static_cast<float>(i));
  const auto y = exponentials<BaseBodies>(x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(x[i]));
    if (x[i] < -87.3f) {
      ASSERT_EQ(y[i], 0) << x[i];
    } else if (x[i] <= 88.3f) {
      ASSERT_LT(std::abs(y[i] - want), 2.5e-7 * want) << x[i];
    }
  }
  const float nan = std::nanf("");
  EXPECT_TRUE(std::isnan(exponentials<BaseBodies>(std::vector<float>(16, nan))[3]));
}

TEST(InstructionSets, GiveTheSameBits) {
  const int64_t rows = 5, F = 50;
  std::vector<float> h;
  for (int64_t i = 0; i < rows * 2 * F; ++i) h.push_back(std::sin(static_cast<float>(i)) * 6);
  const auto base = gradients<BaseBodies>(h, rows, F);
#if MANIPLE_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    EXPECT_EQ(base, gradients<Avx2Bodies>(h, rows, F));
  }
  if (isa() == Isa::kAvx512) {
    EXPECT_EQ(base, gradients<Avx512Bodies>(h, rows, F));
  }
#endif
}

}  // namespace
}  // namespace maniple

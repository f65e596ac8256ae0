// The fused passes against their references in fp64, over odd sizes, both storage types and no rows.
#include <gtest/gtest.h>

#include "kernels/glu.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/softmax_loss.h"

namespace maniple {
namespace {

class Fused : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(11); }
  at::ScalarType type() const { return GetParam(); }
  at::Tensor operand(at::IntArrayRef shape) const { return at::randn(shape, at::kDouble).to(type()); }
  static at::Tensor wide(const at::Tensor& x) { return x.to(at::kDouble); }
  // fp32: a few units in the last place of sums of this length; bf16: two of its quanta (2^-8).
  void expect_close(const at::Tensor& got, const at::Tensor& want, const char* what) const {
    ASSERT_EQ(got.sizes(), want.sizes()) << what;
    if (got.numel() == 0) return;
    const double quantum = got.scalar_type() == at::kBFloat16 ? 8e-3 : type() == at::kFloat ? 4e-6 : 1.2e-2;
    const double scale = std::max(1.0, want.abs().max().item<double>());
    EXPECT_LT((wide(got) - want).abs().max().item<double>(), quantum * scale) << what;
  }
};
INSTANTIATE_TEST_SUITE_P(Types, Fused, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST_P(Fused, RmsNormForwardAndBackward) {
  for (int64_t R : {0, 1, 63, 130})
    for (int64_t D : {1, 16, 72, 513})
      for (bool plus_one : {false, true}) {
        const at::Tensor x = operand({R, D}), w = operand({D}), dy = operand({R, D});
        const auto got = rms_norm_forward(x, w, 1e-6, plus_one);
        const auto want = rms_norm_forward(wide(x), wide(w), 1e-6, plus_one);
        expect_close(got.y, want.y, "y");
        at::Tensor dw = at::ones({D}), dw64 = at::ones({D}, at::kDouble);
        const at::Tensor dx = rms_norm_backward(dy, x, got.rstd, w, plus_one, dw);
        const at::Tensor dx64 = rms_norm_backward(wide(dy), wide(x), want.rstd, wide(w), plus_one, dw64);
        // A row's gradient is rstd times a difference of terms of size 1.
        const at::Tensor rstd = want.rstd.unsqueeze(1);
        expect_close((wide(dx) / rstd).to(type()), dx64 / rstd, "dx / rstd");
        expect_close(dw, dw64, "dw");
      }
}

TEST_P(Fused, GatedActivationForwardAndBackward) {
  for (auto activation : {Activation::kSilu, Activation::kGeluTanh})
    for (int64_t N : {0, 1, 33})
      for (int64_t F : {1, 16, 48, 100})
        for (bool weighted : {false, true}) {
          const at::Tensor h = operand({N, 2 * F}) * 3, dy = operand({N, F});
          const at::Tensor p = weighted ? at::rand({N}) : at::Tensor(), p64 = weighted ? wide(p) : p;
          expect_close(glu_forward(activation, h, p), glu_forward(activation, wide(h), p64), "y");
          const at::Tensor dh = h.clone(), dh64 = wide(h).clone();
          const at::Tensor dp = glu_backward(activation, dy, dh, p);
          const at::Tensor dp64 = glu_backward(activation, wide(dy), dh64, p64);
          expect_close(dh, dh64, "dh");
          if (weighted) expect_close(dp, dp64, "dweight");
        }
}

TEST_P(Fused, GatedActivationOfExtremesIsFinite) {
  at::Tensor h = at::full({4, 32}, 1, at::kDouble);
  for (int64_t i = 0; i < 4; ++i) h[i].narrow(0, 0, 16).fill_(std::vector<double>{-1e4, -90, 90, 1e4}[i]);
  for (auto activation : {Activation::kSilu, Activation::kGeluTanh}) {
    expect_close(glu_forward(activation, h.to(type()), {}), glu_forward(activation, wide(h.to(type())), {}), "y");
    const at::Tensor dh = h.to(type(), false, /*copy=*/true);
    glu_backward(activation, at::ones({4, 16}, at::TensorOptions(type())), dh, {});
    EXPECT_TRUE(at::isfinite(dh).all().item<bool>());
  }
}

TEST_P(Fused, RowsMoveAndAddUp) {
  for (int64_t D : {1, 24, 512})
    for (int64_t K : {1, 2, 5}) {
      const int64_t T = 37;
      const at::Tensor x = operand({T, D}), order = at::randperm(T * K), slots = operand({T * K, D});
      EXPECT_TRUE(at::equal(gather_rows(x, order, K), x.index_select(0, order.floor_divide(K))));
      expect_close(gather_sum_rows(slots, order, K), gather_sum_rows(wide(slots), order, K), "sum");
    }
  const at::Tensor x = at::randn({300, 24}, at::kFloat), index = at::randint(0, 12, {300}, at::kLong);
  for (const auto wide : {at::kFloat, at::kDouble}) {  // of the last index nothing is added
    const at::Tensor from = x.to(wide), before = at::randn({11, 24}, wide), sums = before.clone();
    add_rows(from, index, sums);
    EXPECT_TRUE(at::equal(sums, before + at::embedding_dense_backward(from, index, 12, 11, false)
                                             .narrow(0, 0, 11)));
  }
  const at::Tensor none = at::empty({0}, at::kLong);
  EXPECT_EQ(gather_rows(operand({3, 8}), none).size(0), 0);
  EXPECT_EQ(gather_sum_rows(operand({3, 8}), none, 2).size(0), 0);
}

TEST_P(Fused, RotationAndItsInverse) {
  for (int64_t d : {2, 16, 50, 128}) {
    const at::Tensor x = operand({2, 7, 3, d}), angle = at::rand({2, 7, d / 2}, at::kDouble) * 6;
    const at::Tensor cos = angle.cos().to(type()), sin = angle.sin().to(type());
    for (bool inverse : {false, true})
      expect_close(rotate(x, cos, sin, inverse), rotate(wide(x), wide(cos), wide(sin), inverse), "y");
  }
}

TEST_P(Fused, SoftmaxStatisticsAndGradient) {
  for (int64_t n : {0, 1, 9})
    for (int64_t V : {1, 15, 257, 1000}) {
      const at::Tensor z = at::randn({n, V}) * 5, z64 = wide(z);
      at::Tensor column = at::randint(0, V, {n}, at::kLong);
      if (n > 1) column[1] = -1;
      const auto got = softmax_stats(z, column);
      expect_close(got.chosen, wide(got.chosen), "chosen");
      at::Tensor factor = at::rand({n});
      if (n > 2) factor[2] = 0;
      if (n == 0) continue;
      const auto want = softmax_stats(z64, column);
      expect_close(got.top, want.top, "top");
      expect_close(got.total, want.total, "total");
      expect_close(got.chosen, want.chosen, "chosen");
      expect_close(softmax_gradient(z, got.top, factor, column, 0.5, type()),
                   softmax_gradient(z64, want.top, wide(factor), column, 0.5, at::kDouble), "dz");
    }
}

}  // namespace
}  // namespace maniple

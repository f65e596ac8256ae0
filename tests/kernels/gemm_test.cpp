#include "kernels/gemm.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace maniple {
namespace {

// An operand of values in {-4 .. 4} / 4: every product and sum below is exact in fp32 and bf16
// inputs, so that blocked sums must equal the fp64 product to the last bit.
at::Tensor operand(int64_t rows, int64_t columns, at::ScalarType type, bool transposed, int64_t seed) {
  const int64_t n = rows * columns;
  const at::Tensor x = at::arange(n, at::TensorOptions(at::kLong)).mul_(2654435761 + seed * 97)
                           .bitwise_right_shift_(7).remainder_(9).sub_(4).to(type).div_(4);
  return transposed ? x.view({columns, rows}).t() : x.view({rows, columns});
}

at::Tensor exact(const at::Tensor& a, const at::Tensor& b) {
  return at::mm(a.to(at::kDouble), b.to(at::kDouble));
}

class Gemm : public testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(Types, Gemm, testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST_P(Gemm, EqualsTheExactProductForAllShapesAndLayouts) {
  const auto type = GetParam();
  const int64_t sizes[] = {1, 2, 15, 16, 33, 64, 72, 130, 257};
  for (int64_t M : sizes)
    for (int64_t N : sizes)
      for (int64_t K : {1, 2, 31, 64, 129, 700})
        for (int layout = 0; layout < 4; ++layout) {
          const at::Tensor a = operand(M, K, type, layout & 1, 1), b = operand(K, N, type, layout & 2, 2);
          const at::Tensor want = exact(a, b);
          at::Tensor c = at::full({M, N}, 7, a.options());
          multiply(a, b, c);
          ASSERT_TRUE(at::equal(c, want.to(type))) << M << " " << N << " " << K << " " << layout;
          at::Tensor sum = at::full({M, N}, 7, a.options().dtype(type == at::kDouble ? type : at::kFloat));
          multiply_add(a, b, sum);
          ASSERT_TRUE(at::equal(sum, (want + 7).to(sum.scalar_type())))
              << M << " " << N << " " << K << " " << layout;
        }
}

// More than one slab of the depth (1,024 fp32, 2,048 bf16), more panels than a task takes.
TEST_P(Gemm, DeepAndWideProducts) {
  using Shape = std::array<int64_t, 3>;
  for (const auto [M, N, K] : {Shape{130, 200, 2100}, {128, 64, 4096}, {20, 2112, 2049}})
    for (int layout = 0; layout < 4; ++layout) {
      const at::Tensor a = operand(M, K, GetParam(), layout & 1, 1);
      const at::Tensor b = operand(K, N, GetParam(), layout & 2, 2);
      at::Tensor c = at::full({M, N}, 7, a.options());
      multiply(a, b, c);
      const at::Tensor once = exact(a, b).to(GetParam());
      ASSERT_TRUE(at::equal(c, once)) << M << " " << N << " " << K << " " << layout;
      multiply_add(a, b, c);
      const at::Tensor twice = (once.to(at::kDouble) + exact(a, b)).to(GetParam());
      ASSERT_TRUE(at::equal(c, twice)) << M << " " << N << " " << K << " " << layout;
    }
}

TEST_P(Gemm, WritesOnlyItsPartOfALargerMatrix) {
  at::Tensor whole = at::full({40, 200}, 7, at::TensorOptions(GetParam()));
  const at::Tensor a = operand(20, 64, GetParam(), false, 1), b = operand(64, 100, GetParam(), true, 2);
  multiply(a, b, whole.narrow(0, 10, 20).narrow(1, 50, 100));
  EXPECT_TRUE(at::equal(whole.narrow(0, 10, 20).narrow(1, 50, 100), exact(a, b).to(GetParam())));
  EXPECT_EQ((whole != 7).narrow(1, 0, 50).sum().item<int64_t>(), 0);
  EXPECT_EQ((whole != 7).narrow(1, 150, 50).sum().item<int64_t>(), 0);
  EXPECT_EQ((whole != 7).narrow(0, 0, 10).sum().item<int64_t>(), 0);
  EXPECT_EQ((whole != 7).narrow(0, 30, 10).sum().item<int64_t>(), 0);
}

TEST_P(Gemm, ManyProductsAtOnceWithEmptyOnes) {
  std::vector<Product> products;
  for (int64_t M : {5, 0, 300, 1, 0}) {
    const at::Tensor a = operand(M, 72, GetParam(), false, M), b = operand(72, 48, GetParam(), true, M);
    products.push_back({a, b, at::full({M, 48}, 7, a.options()), false});
  }
  const at::Tensor none = at::empty({3, 0}, at::TensorOptions(GetParam()));
  products.push_back({none, none.t(), at::full({3, 3}, 7, none.options()), false});
  products.push_back({none, none.t(), at::full({3, 3}, 7, none.options()), true});
  multiply(products);
  for (const Product& p : products)
    EXPECT_TRUE(at::equal(p.c, exact(p.a, p.b).add(p.accumulate ? 7 : 0).to(GetParam())));
}

// Panels of more than 2 MiB per thread are packed in waves; one product is in several.
TEST_P(Gemm, ManyWideProductsAtOnce) {
  std::vector<Product> products;
  for (int64_t i = 0; i < 5; ++i) {
    const at::Tensor a = operand(20 + i, 1024, GetParam(), false, i);
    const at::Tensor b = operand(1024, 2200 + 100 * i, GetParam(), i % 2, i + 1);
    products.push_back({a, b, at::full({a.size(0), b.size(1)}, 7, a.options()), i == 3});
  }
  multiply(products);
  for (const Product& p : products)
    EXPECT_TRUE(at::equal(p.c, exact(p.a, p.b).add(p.accumulate ? 7 : 0).to(GetParam())));
}

TEST_P(Gemm, ThreadsDoNotChangeBits) {
  const auto options = at::TensorOptions(GetParam());
  at::manual_seed(3);
  const at::Tensor a = at::randn({300, 500}, at::kDouble).to(GetParam());
  const at::Tensor b = at::randn({700, 500}, at::kDouble).to(GetParam());
  at::Tensor one = at::empty({300, 700}, options), three = at::empty({300, 700}, options);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  multiply(a, b.t(), one);
  at::set_num_threads(3);
  multiply(a, b.t(), three);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, three));
}

TEST(GemmRounding, IsThatOfFp32Sums) {
  at::manual_seed(4);
  const at::Tensor a = at::randn({128, 512}), b = at::randn({512, 256});
  at::Tensor c = at::empty({128, 256});
  multiply(a, b, c);
  // 512 addends of size 1: a few units of 2^-24 times sqrt(512).
  EXPECT_LT((c.to(at::kDouble) - exact(a, b)).abs().max().item<double>(), 2e-4);
}

}  // namespace
}  // namespace maniple

#include "kernels/gemm_pack.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace maniple {
namespace {

// What processors without instructions for bf16 do, tested on all.
class Widened : public testing::Test {
 protected:
  static constexpr int64_t kRows = 72, kColumns = 85;
  struct Part {
    int64_t row, column, lines, depth;  // strides, rows of a or columns of b, K
  };
  Widened() {
    for (size_t i = 0; i < narrow.size(); ++i) {
      narrow[i] = static_cast<bf16_t>(i * 2654435761u >> 13);
      wide[i] = to_float(narrow[i]);
    }
  }
  std::vector<bf16_t> narrow = std::vector<bf16_t>(kRows * kColumns);
  std::vector<float> wide = std::vector<float>(kRows * kColumns);
};

// Equal bits, NaN included.
void expect_equal(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
}

TEST_F(Widened, RowsEqualThoseOfWidenedElements) {
  for (const auto [row, column, M, K] : {Part{kColumns, 1, kRows, kColumns}, {kColumns, 1, 5, 17},
                                         {1, kRows, kRows, kColumns}, {1, kRows, 33, 40}}) {
    const int64_t padded_m = round_up(M, 16), padded_k = round_up(K, 32);
    std::vector<float> from_narrow(padded_m * padded_k, 7), from_wide(padded_m * padded_k, 7);
    pack_a(View<bf16_t>{narrow.data(), row, column}, M, K, padded_m, padded_k, from_narrow.data());
    pack_a(View<float>{wide.data(), row, column}, M, K, padded_m, padded_k, from_wide.data());
    expect_equal(from_narrow, from_wide);
  }
}

TEST_F(Widened, PanelsEqualThoseOfWidenedElements) {
  for (const auto [row, column, N, K] : {Part{kColumns, 1, kPanel, kRows}, {kColumns, 1, 50, 9},
                                         {1, kRows, kPanel, kRows}, {1, kRows, 21, 33}}) {
    const int64_t padded_k = round_up(K, 32);
    std::vector<float> from_narrow(padded_k * kPanel, 7), from_wide(padded_k * kPanel, 7);
    pack_b(View<bf16_t>{narrow.data(), row, column}, K, N, padded_k, from_narrow.data());
    pack_b(View<float>{wide.data(), row, column}, K, N, padded_k, from_wide.data());
    expect_equal(from_narrow, from_wide);
  }
}

}  // namespace
}  // namespace maniple

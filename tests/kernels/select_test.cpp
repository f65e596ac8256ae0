#include "kernels/select.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/random.h"

namespace maniple {
namespace {

at::Tensor random_weights(int64_t n, int64_t V, at::ScalarType type) {
  at::Tensor w = at::empty({n, V}, at::TensorOptions(at::kDouble));
  for (int64_t i = 0; i < w.numel(); ++i)
    w.data_ptr<double>()[i] = std::exp(2 * normal(7, static_cast<uint64_t>(i)));
  return w.to(type);
}

std::vector<RowDraws> whole_rows(const at::Tensor& sums) {
  std::vector<RowDraws> draws;
  for (int64_t r = 0; r < sums.size(0); ++r)
    draws.push_back({0, INFINITY, 1, sums[r][sums.size(1) - 1].item<double>(), key_of(5, r)});
  return draws;
}

// Draw by draw over the running sum of all columns.
std::vector<int32_t> reference(const at::Tensor& weight, const RowDraws& d, int64_t num) {
  const at::Tensor w = weight.to(at::kDouble);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < num; ++i) {
    const double at = uniform(d.key, static_cast<uint64_t>(i)) * d.total;
    double sum = 0;
    int32_t c = 0;
    for (; c + 1 < w.numel(); ++c) {
      sum += w[c].item<double>();
      if (sum > at) break;
    }
    out.push_back(c);
  }
  std::sort(out.begin(), out.end());
  return out;
}

TEST(Select, DrawsFollowTheRunningSum) {
  for (const auto type : {at::kFloat, at::kDouble})
    for (const int64_t V : {1, 7, 128, 129, 1000}) {
      const at::Tensor w = random_weights(5, V, type), sums = running_sums(w);
      const std::vector<RowDraws> draws = whole_rows(sums);
      const auto got = draw_columns(w, sums, draws, 40);
      for (size_t r = 0; r < 5; ++r)
        EXPECT_EQ(got[r], reference(w[static_cast<int64_t>(r)], draws[r], 40)) << V;
    }
}

TEST(Select, PartsOfARowTakeEveryDrawOnce) {
  const at::Tensor w = random_weights(4, 1000, at::kDouble), sums = running_sums(w);
  const std::vector<RowDraws> draws = whole_rows(sums);
  const auto whole = draw_columns(w, sums, draws, 60);
  for (size_t r = 0; r < 4; ++r) {
    std::vector<int32_t> together;
    double low = 0;
    for (int64_t part = 0; part < 4; ++part) {
      // A part may count in other units: scale brings them back.
      const at::Tensor mine = (w.narrow(1, part * 250, 250) * 8).contiguous();
      const at::Tensor own = running_sums(mine);
      std::vector<RowDraws> d = draws;
      for (size_t q = 0; q < 4; ++q) d[q].scale = 0.125;
      const double share = own[static_cast<int64_t>(r)][own.size(1) - 1].item<double>() / 8;
      d[r].low = low;
      d[r].high = part == 3 ? INFINITY : low + share;
      low += share;
      const auto got = draw_columns(mine, own, d, 60);
      for (int32_t c : got[r])
        together.push_back(static_cast<int32_t>(part * 250) + c);
    }
    EXPECT_EQ(together, whole[r]);
  }
}

TEST(Select, ColumnsWithoutWeightAreNeverDrawn) {
  at::Tensor w = at::zeros({1, 300}, at::TensorOptions(at::kFloat));
  w[0][17] = 1;
  w[0][140] = 3;
  const at::Tensor sums = running_sums(w);
  const auto got = draw_columns(w, sums, whole_rows(sums), 256)[0];
  int64_t first = 0;
  for (int32_t c : got) {
    EXPECT_TRUE(c == 17 || c == 140) << c;
    first += c == 17;
  }
  EXPECT_NEAR(static_cast<double>(first) / 256, 0.25, 0.1);
}

TEST(Select, ThreadsDoNotChangeDraws) {
  const at::Tensor w = random_weights(50, 400, at::kFloat), sums = running_sums(w);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = draw_columns(w, sums, whole_rows(sums), 30);
  at::set_num_threads(4);
  EXPECT_EQ(draw_columns(w, running_sums(w), whole_rows(sums), 30), one);
  at::set_num_threads(threads);
}

TEST(Select, TopColumnsAreTheLargestAndTiesGoToTheSmallerColumn) {
  const at::Tensor z = at::tensor(std::vector<double>{1, 5, 3, 5, -2, 3, 3, 0},
                                  at::TensorOptions(at::kDouble)).view({1, 8});
  EXPECT_EQ(top_columns(z, 1)[0], (std::vector<int32_t>{1}));
  EXPECT_EQ(top_columns(z, 3)[0], (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(top_columns(z.to(at::kFloat), 4)[0], (std::vector<int32_t>{1, 2, 3, 5}));
  EXPECT_EQ(top_columns(z, 20)[0].size(), 8u);
}

}  // namespace
}  // namespace maniple

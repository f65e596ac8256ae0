#include "kernels/select.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/random.h"

namespace maniple {
namespace {

struct Logits {
  at::Tensor z;
  RunningSums sums;

  explicit Logits(const at::Tensor& logits, double power = 1)
      : z(logits), sums(running_sums(logits, power)) {}
  double top(int64_t row) const { return sums.top[row].item<double>(); }
  double total(int64_t row) const { return sums.total()[row].item<double>(); }
  std::vector<std::vector<int32_t>> draw(const std::vector<RowDraws>& draws, int64_t num) const {
    return draw_columns(z, sums, draws, num);
  }
};

at::Tensor random_logits(int64_t n, int64_t V, at::ScalarType type) {
  at::Tensor z = at::empty({n, V}, at::TensorOptions(at::kDouble));
  for (int64_t i = 0; i < z.numel(); ++i)
    z.data_ptr<double>()[i] = 2 * normal(7, static_cast<uint64_t>(i));
  return z.to(type);
}

std::vector<RowDraws> whole_rows(const Logits& x) {
  std::vector<RowDraws> draws;
  for (int64_t r = 0; r < x.z.size(0); ++r)
    draws.push_back({0, INFINITY, 1, x.total(r), key_of(5, r)});
  return draws;
}

// Draw by draw over the running sum of all columns.
std::vector<int32_t> reference(const Logits& x, int64_t row, const RowDraws& d, int64_t num) {
  const at::Tensor z = x.z[row].to(at::kDouble), w = ((z - z.max()) * x.sums.power).exp();
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
    for (const double power : {1.0, 0.5})
      for (const int64_t V : {1, 7, 128, 129, 1000}) {
        const Logits x(random_logits(5, V, type), power);
        const std::vector<RowDraws> draws = whole_rows(x);
        const auto got = x.draw(draws, 40);
        for (int64_t r = 0; r < 5; ++r) {
          const auto row = static_cast<size_t>(r);
          EXPECT_EQ(got[row], reference(x, r, draws[row], 40)) << V;
        }
      }
}

TEST(Select, PartsOfARowTakeEveryDrawOnce) {
  const Logits x(random_logits(4, 1000, at::kDouble));
  const std::vector<RowDraws> draws = whole_rows(x);
  const auto whole = x.draw(draws, 60);
  for (int64_t r = 0; r < 4; ++r) {
    const auto row = static_cast<size_t>(r);
    std::vector<int32_t> together;
    double low = 0;
    for (int64_t part = 0; part < 4; ++part) {
      // A part's weights are relative to its own maximum: scale brings them back.
      const Logits mine(x.z.narrow(1, part * 250, 250).contiguous());
      std::vector<RowDraws> d = draws;
      d[row].scale = std::exp(mine.top(r) - x.top(r));
      const double share = mine.total(r) * d[row].scale;
      d[row].low = low;
      d[row].high = part == 3 ? INFINITY : low + share;
      low += share;
      const auto got = mine.draw(d, 60);
      for (int32_t c : got[row]) together.push_back(static_cast<int32_t>(part * 250) + c);
    }
    EXPECT_EQ(together, whole[row]);
  }
}

TEST(Select, ColumnsWithoutWeightAreNeverDrawn) {
  at::Tensor z = at::full({1, 300}, -INFINITY, at::TensorOptions(at::kFloat));
  z[0][17] = 0;
  z[0][140] = std::log(3);
  const Logits x(z);
  const auto got = x.draw(whole_rows(x), 256)[0];
  int64_t first = 0;
  for (int32_t c : got) {
    EXPECT_TRUE(c == 17 || c == 140) << c;
    first += c == 17;
  }
  EXPECT_NEAR(static_cast<double>(first) / 256, 0.25, 0.1);
}

TEST(Select, ThreadsDoNotChangeDraws) {
  const at::Tensor z = random_logits(50, 400, at::kFloat);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Logits one(z);
  const auto draws = one.draw(whole_rows(one), 30);
  at::set_num_threads(4);
  const Logits four(z);
  EXPECT_EQ(four.draw(whole_rows(four), 30), draws);
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

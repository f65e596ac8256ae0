// Choosing a few columns of each row of a matrix z [n, V] (fp32, fp64, host memory): draws in proportion
// to their exponentials, and the largest values. Plain passes over rows, the same bits whatever the threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <utility>
#include <vector>

namespace maniple {

// Draws give column c of a row the weight exp(power (z[c] - top)), which is made where it is needed and
// nowhere kept.
constexpr int64_t kSumColumns = 64;
struct RunningSums {
  double power = 1;
  at::Tensor top;   // [n]: max of the row, in z's type
  at::Tensor sums;  // fp64 [n, blocks]: of the weights of columns [0, (b + 1) kSumColumns)
  at::Tensor total() const { return sums.select(1, sums.size(1) - 1); }  // [n]
};
RunningSums running_sums(const at::Tensor& z, double power);

// Which of `num` draws with replacement fall into this part of a larger row, and where. The whole
// row has mass `total` and this part the interval [low, high) of it, in which column c weighs `scale`
// times its weight. Draw d is the number uniform(key, d) * total of the interval [0, total).
struct RowDraws {
  double low = 0, high = 0, scale = 1, total = 0;
  uint64_t key = 0;
};
// Per row the columns drawn, ascending, with repetitions. sums: of z.
std::vector<std::vector<int32_t>> draw_columns(const at::Tensor& z, const RunningSums& sums,
                                               std::span<const RowDraws> draws, int64_t num);

// The min(k, V) largest of each row, by ascending column; of equal values the smaller column.
std::vector<std::vector<int32_t>> top_columns(const at::Tensor& value, int64_t k);

}  // namespace maniple

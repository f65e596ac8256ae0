#include "kernels/rows.h"

#include <vector>

#include "kernels/fused.h"
#include "kernels/parallel_tasks.h"

#define MANIPLE_BODIES "kernels/rows_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 64;

template <typename T>
void sum_rows(const at::Tensor& x, const at::Tensor& index, int64_t K, at::Tensor& y) {
  const int64_t D = x.size(1);
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  const auto* at_row = index.const_data_ptr<int64_t>();
  auto* to = static_cast<T*>(y.data_ptr());
  parallel_ranges(y.size(0), kGroupRows, [&](int64_t begin, int64_t end) {
    with_isa([&](auto bodies) { bodies.template sum_of_rows<T>(from, at_row + begin * K, to + begin * D, end - begin, K, D); });
  });
}

// Only the rows that occur are touched: a vocabulary is much larger than a micro-batch.
template <typename T>
void add_rows(const at::Tensor& x, const at::Tensor& index, const at::Tensor& sums) {
  const int64_t D = x.size(1), R = sums.size(0);
  const auto* from = x.const_data_ptr<T>();
  auto* to = sums.data_ptr<T>();
  const auto [sorted, order] = index.sort(/*stable=*/true, 0, /*descending=*/false);
  const auto *row = sorted.const_data_ptr<int64_t>(), *token = order.const_data_ptr<int64_t>();
  std::vector<int64_t> begin;  // of each run of one row
  for (int64_t i = 0; i < index.numel() && row[i] < R; ++i)
    if (i == 0 || row[i] != row[i - 1]) begin.push_back(i);
  const auto runs = static_cast<int64_t>(begin.size());
  parallel_ranges(runs, kGroupRows, [&](int64_t first, int64_t last) {
    std::vector<T> sum(D);
    for (int64_t run = first; run < last; ++run) {
      std::fill(sum.begin(), sum.end(), T{0});
      for (int64_t i = begin[run]; i < index.numel() && row[i] == row[begin[run]]; ++i)
        for (int64_t d = 0; d < D; ++d) sum[d] += from[token[i] * D + d];
      T* at_row = to + row[begin[run]] * D;
      for (int64_t d = 0; d < D; ++d) at_row[d] += sum[d];
    }
  });
}

}  // namespace

void add_rows(const at::Tensor& x, const at::Tensor& index, const at::Tensor& sums) {
  if (!x.is_cpu()) {
    const int64_t rows = sums.size(0);
    const at::Tensor g = at::embedding_dense_backward(x, index, rows + 1, rows, false);
    sums.add_(g.narrow(0, 0, rows));
  } else if (x.scalar_type() == at::kDouble) {
    add_rows<double>(x, index, sums);
  } else {
    add_rows<float>(x, index, sums);
  }
}

at::Tensor gather_rows(const at::Tensor& x_in, const at::Tensor& index_in, int64_t divisor) {
  if (!x_in.is_cpu() || x_in.dim() != 2)
    return x_in.index_select(0, divisor == 1 ? index_in : index_in.floor_divide(divisor));
  const at::Tensor x = x_in.contiguous(), index = index_in.contiguous();
  at::Tensor y = at::empty({index.numel(), x.size(1)}, x.options());
  const int64_t bytes = x.size(1) * static_cast<int64_t>(x.element_size());
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  const auto* at_row = index.const_data_ptr<int64_t>();
  auto* to = static_cast<char*>(y.data_ptr());
  parallel_ranges(index.numel(), kGroupRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      std::memcpy(to + n * bytes, from + at_row[n] / divisor * bytes, bytes);
  });
  return y;
}

at::Tensor gather_sum_rows(const at::Tensor& x_in, const at::Tensor& index, int64_t K) {
  const at::Tensor x = x_in.contiguous();
  const int64_t D = x.size(1), T = index.numel() / K;
  if (!runs_fused(x))
    return x.index_select(0, index).view({T, K, D}).sum(1);
  at::Tensor y = at::empty({T, D}, x.options());
  if (x.scalar_type() == at::kFloat)
    sum_rows<float>(x, index.contiguous(), K, y);
  else
    sum_rows<bf16_t>(x, index.contiguous(), K, y);
  return y;
}

}  // namespace maniple

#include "kernels/select.h"

#include <ATen/Dispatch.h>

#include <algorithm>

#include "core/errors.h"
#include "core/random.h"
#include "kernels/parallel_tasks.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 8, kLanes = 16;

template <typename T>
double sum_of(const T* w, int64_t n) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(w[i + l]);
  for (int64_t l = 0; i < n; ++i, ++l) lane[l] += static_cast<double>(w[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

// The column of [0, V) whose part of the running sum holds `at`; the last with weight if rounding
// puts `at` beyond the end.
template <typename T>
int32_t find_column(const T* w, const double* sums, int64_t V, int64_t blocks, double at) {
  int64_t block = std::min<int64_t>(std::upper_bound(sums, sums + blocks, at) - sums, blocks - 1);
  while (block > 0 && sums[block] == sums[block - 1]) --block;  // only when beyond the end
  double sum = block ? sums[block - 1] : 0;
  const int64_t begin = block * kSumColumns, end = std::min(V, begin + kSumColumns);
  int64_t last = begin;
  for (int64_t c = begin; c < end; ++c) {
    if (w[c] > 0) last = c;
    sum += static_cast<double>(w[c]);
    if (sum > at) break;
  }
  return static_cast<int32_t>(last);
}

template <typename T>
std::vector<int32_t> top_of(const T* value, int64_t V, int64_t k) {
  using Item = std::pair<T, int32_t>;
  // On top of the heap the first to go: the smallest value, of equal ones the largest column.
  auto stays_longer = [](const Item& a, const Item& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  };
  std::vector<Item> heap;
  for (int64_t c = 0; c < V; ++c) {
    if (static_cast<int64_t>(heap.size()) == k) {
      if (!(value[c] > heap.front().first)) continue;
      std::pop_heap(heap.begin(), heap.end(), stays_longer);
      heap.pop_back();
    }
    heap.emplace_back(value[c], static_cast<int32_t>(c));
    std::push_heap(heap.begin(), heap.end(), stays_longer);
  }
  std::vector<int32_t> columns;
  for (const Item& item : heap) columns.push_back(item.second);
  std::sort(columns.begin(), columns.end());
  return columns;
}

}  // namespace

at::Tensor running_sums(const at::Tensor& weight) {
  const int64_t n = weight.size(0), V = weight.size(1), blocks = (V + kSumColumns - 1) / kSumColumns;
  at::Tensor out = at::empty({n, blocks}, weight.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "running_sums", [&] {
    const auto* w = weight.const_data_ptr<scalar_t>();
    double* sums = out.data_ptr<double>();
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        double sum = 0;
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t first = b * kSumColumns;
          sum += sum_of(w + r * V + first, std::min(kSumColumns, V - first));
          sums[r * blocks + b] = sum;
        }
      }
    });
  });
  return out;
}

std::vector<std::vector<int32_t>> draw_columns(const at::Tensor& weight, const at::Tensor& sums,
                                               std::span<const RowDraws> draws, int64_t num) {
  const int64_t n = weight.size(0), V = weight.size(1), blocks = sums.size(1);
  MANIPLE_INVARIANT(weight.is_contiguous() && n == static_cast<int64_t>(draws.size()),
                    "{} rows of weights for {} of draws", n, draws.size());
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(n));
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "draw_columns", [&] {
    const auto* w = weight.const_data_ptr<scalar_t>();
    const double* s = sums.const_data_ptr<double>();
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const RowDraws& d = draws[static_cast<size_t>(r)];
        std::vector<int32_t>& columns = out[static_cast<size_t>(r)];
        for (int64_t i = 0; i < num; ++i) {
          const double at = uniform(d.key, static_cast<uint64_t>(i)) * d.total;
          if (at < d.low || at >= d.high) continue;
          columns.push_back(find_column(w + r * V, s + r * blocks, V, blocks, (at - d.low) / d.scale));
        }
        std::sort(columns.begin(), columns.end());
      }
    });
  });
  return out;
}

std::vector<std::vector<int32_t>> top_columns(const at::Tensor& value, int64_t k) {
  const int64_t n = value.size(0), V = value.size(1);
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(n));
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "top_columns", [&] {
    const auto* v = value.const_data_ptr<scalar_t>();
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        out[static_cast<size_t>(r)] = top_of(v + r * V, V, std::min(k, V));
    });
  });
  return out;
}

}  // namespace maniple

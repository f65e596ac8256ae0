#include "kernels/select.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/errors.h"
#include "core/random.h"
#include "kernels/parallel_tasks.h"

#define MANIPLE_BODIES "kernels/select_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kGroupRows = 8;

// The weights of `n` columns. fp32 has bodies of its own (select_bodies.h).
void block_weights(const double* z, int64_t n, double top, double power, double* weight) {
  for (int64_t c = 0; c < n; ++c) weight[c] = std::exp(power * (z[c] - top));
}
void block_weights(const float* z, int64_t n, float top, double power, float* weight) {
  with_isa([&](auto bodies) {
    bodies.block_weights(z, n, top, static_cast<float>(power), weight);
  });
}

void running_sums_of(const double* z, double power, double* top, double* sums, int64_t rows,
                     int64_t V) {
  double weight[kSumColumns];
  for (int64_t r = 0; r < rows; ++r, z += V) {
    top[r] = *std::max_element(z, z + V);
    double sum = 0;
    for (int64_t first = 0; first < V; first += kSumColumns) {
      const int64_t n = std::min(kSumColumns, V - first);
      block_weights(z + first, n, top[r], power, weight);
      *sums++ = sum = std::accumulate(weight, weight + n, sum);
    }
  }
}
void running_sums_of(const float* z, double power, float* top, double* sums, int64_t rows,
                     int64_t V) {
  with_isa([&](auto bodies) {
    bodies.running_sums(z, static_cast<float>(power), top, sums, rows, V);
  });
}

// For each of the ascending numbers `at` the column of [0, V) whose part of the running sum holds it;
// the last with weight if rounding puts it beyond the end. One pass over the blocks that they meet.
template <typename T>
std::vector<int32_t> find_columns(const T* z, T top, double power, const double* sums, int64_t V,
                                  const std::vector<double>& at) {
  const int64_t blocks = (V + kSumColumns - 1) / kSumColumns;
  std::vector<int32_t> columns;
  columns.reserve(at.size());
  T weight[kSumColumns];
  int64_t met = -1, n = 0, c = 0, last = 0;
  double sum = 0;
  for (const double x : at) {
    int64_t block = std::min<int64_t>(
        std::upper_bound(sums + std::max<int64_t>(met, 0), sums + blocks, x) - sums, blocks - 1);
    while (block > 0 && sums[block] == sums[block - 1]) --block;  // only when beyond the end
    const int64_t first = block * kSumColumns;
    if (block != met) {
      met = block;
      n = std::min(kSumColumns, V - first);
      block_weights(z + first, n, top, power, weight);
      sum = block ? sums[block - 1] : 0;
      c = last = 0;
    }
    for (; c < n && !(sum > x); ++c) {
      if (weight[c] > 0) last = c;
      sum += static_cast<double>(weight[c]);
    }
    columns.push_back(static_cast<int32_t>(first + last));
  }
  return columns;
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

RunningSums running_sums(const at::Tensor& z, double power) {
  const int64_t n = z.size(0), V = z.size(1), blocks = (V + kSumColumns - 1) / kSumColumns;
  RunningSums out{power, at::empty({n}, z.options()),
                  at::empty({n, blocks}, z.options().dtype(at::kDouble))};
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "running_sums", [&] {
    const auto* rows = z.const_data_ptr<scalar_t>();
    auto* top = out.top.data_ptr<scalar_t>();
    double* sums = out.sums.data_ptr<double>();
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      running_sums_of(rows + begin * V, power, top + begin, sums + begin * blocks, end - begin, V);
    });
  });
  return out;
}

std::vector<std::vector<int32_t>> draw_columns(const at::Tensor& z, const RunningSums& sums,
                                               std::span<const RowDraws> draws, int64_t num) {
  const int64_t n = z.size(0), V = z.size(1), blocks = sums.sums.size(1);
  MANIPLE_INVARIANT(z.is_contiguous() && n == static_cast<int64_t>(draws.size()),
                    "{} rows of logits for {} of draws", n, draws.size());
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(n));
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "draw_columns", [&] {
    const auto* rows = z.const_data_ptr<scalar_t>();
    const auto* top = sums.top.const_data_ptr<scalar_t>();
    const double* s = sums.sums.const_data_ptr<double>();
    parallel_ranges(n, kGroupRows, [&](int64_t begin, int64_t end) {
      std::vector<double> at;
      for (int64_t r = begin; r < end; ++r) {
        const RowDraws& d = draws[static_cast<size_t>(r)];
        at.clear();
        for (int64_t i = 0; i < num; ++i) {
          const double x = uniform(d.key, static_cast<uint64_t>(i)) * d.total;
          if (x >= d.low && x < d.high) at.push_back((x - d.low) / d.scale);
        }
        std::sort(at.begin(), at.end());
        out[static_cast<size_t>(r)] =
            find_columns(rows + r * V, top[r], sums.power, s + r * blocks, V, at);
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

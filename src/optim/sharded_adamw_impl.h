// What sharded_adamw.cpp, sharded_adamw_reduce.cpp and sharded_adamw_checks.cpp share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace maniple {

inline constexpr int64_t kChunk = 1 << 16;  // elements per thread task

template <typename T>
std::span<T> span_of(const at::Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), static_cast<size_t>(t.numel())};
}

// Runs body(typed zero) for the accumulation type of a tensor.
template <typename Body>
auto with_type(const at::Tensor& t, const Body& body) {
  return t.scalar_type() == at::kDouble ? body(double{}) : body(float{});
}

// Linear checksum of sums, elements from `first` on of a block that begins at `block_begin` of its
// group's flat buffer. Those of a block's parts add up to that of the block.
uint64_t linear_check(std::span<const int64_t> sums, int64_t block_begin, int64_t first = 0);

}  // namespace maniple

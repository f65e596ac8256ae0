// Where the elements of a slice lie in their whole tensor. Everything the checkpoint does with
// layouts, writing without padding, checking that nothing is missing or stored twice, and planning
// reads, is arithmetic on these segments.
//
// Example: the shard of rows 2..3 and columns 3..5 of a 4 x 5 tensor (column 5 is padding), offset
// (2, 3), shape (2, 3), has two segments: {global 13, local 0, count 2}, {global 18, local 3, count
// 2}. Stored without padding, the same two have locals 0 and 2.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace maniple {

// `count` consecutive elements at row-major index `global` of the whole tensor, at `local` here.
struct Segment {
  int64_t global, local, count;
};

int64_t num_elements(const std::vector<int64_t>& shape);

// The non-padding elements of the slice; `local` is the index in the shard (not less `begin`).
// Ascending in both.
std::vector<Segment> shard_segments(const TensorSlice& slice);

// The same elements; `local` counts stored values only, so the first one is 0.
std::vector<Segment> stored_segments(const TensorSlice& slice);

int64_t num_elements(const std::vector<Segment>& segments);

}  // namespace maniple

#include "checkpoint/layout.h"

#include <algorithm>

namespace maniple {
namespace {

// The slice's box with every dim that it holds whole merged into the dim before: a shard by dim 0
// becomes one run, a shard by a middle dim one run per outer index.
struct Box {
  std::vector<int64_t> global, offset, shape;
};

Box merge_whole_dims(const TensorSlice& slice) {
  Box box;
  for (size_t d = 0; d < slice.global_shape.size(); ++d) {
    const int64_t size = slice.global_shape[d];
    if (d > 0 && slice.offset[d] == 0 && slice.shape[d] == size) {
      box.global.back() *= size;
      box.offset.back() *= size;
      box.shape.back() *= size;
    } else {
      box.global.push_back(size);
      box.offset.push_back(slice.offset[d]);
      box.shape.push_back(slice.shape[d]);
    }
  }
  if (box.global.empty()) box = {{1}, {0}, {1}};  // a scalar
  return box;
}

void append(std::vector<Segment>& segments, const Segment& next) {
  if (!segments.empty()) {
    Segment& last = segments.back();
    if (last.global + last.count == next.global && last.local + last.count == next.local) {
      last.count += next.count;
      return;
    }
  }
  segments.push_back(next);
}

}  // namespace

int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

int64_t num_elements(const std::vector<Segment>& segments) {
  int64_t count = 0;
  for (const Segment& segment : segments) count += segment.count;
  return count;
}

std::vector<Segment> shard_segments(const TensorSlice& slice) {
  std::vector<Segment> segments;
  if (slice.begin >= slice.end) return segments;
  const Box box = merge_whole_dims(slice);
  const size_t inner = box.shape.size() - 1;
  const int64_t width = box.shape[inner];
  for (int64_t row = slice.begin / width; row * width < slice.end; ++row) {
    int64_t rest = row, global_row = 0, stride = 1;
    bool padding = false;
    for (size_t d = inner; d-- > 0;) {
      const int64_t index = box.offset[d] + rest % box.shape[d];
      rest /= box.shape[d];
      padding |= index >= box.global[d];
      global_row += index * stride;
      stride *= box.global[d];
    }
    if (padding) continue;
    const int64_t first = std::max<int64_t>(slice.begin - row * width, 0);
    const int64_t last =
        std::min({slice.end - row * width, width, box.global[inner] - box.offset[inner]});
    if (first < last)
      append(segments, {global_row * box.global[inner] + box.offset[inner] + first,
                        row * width + first, last - first});
  }
  return segments;
}

std::vector<Segment> stored_segments(const TensorSlice& slice) {
  std::vector<Segment> stored;
  int64_t position = 0;
  for (const Segment& segment : shard_segments(slice)) {
    append(stored, {segment.global, position, segment.count});
    position += segment.count;
  }
  return stored;
}

}  // namespace maniple

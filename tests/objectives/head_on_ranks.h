// A head [V, D] divided over tp ranks, as the objectives see it.
#pragma once

#include <algorithm>

#include "parallel/parameters.h"

namespace maniple {

// This rank's rows of `whole` (fp64, fp32), padded to a multiple of the ranks; gradient zero.
inline Parameter part_of_head(const at::Tensor& whole, int rank, int size,
                              at::ScalarType type = at::kDouble) {
  const int64_t V = whole.size(0), D = whole.size(1), rows = (V + size - 1) / size;
  Parameter head;
  head.name = "lm_head.weight";
  head.global_shape = {V, D};
  head.offset = {rank * rows, 0};
  head.shape = {rows, D};
  head.group = GradGroup::kSharded;
  head.value = at::zeros({rows, D}, whole.options().dtype(type));
  const int64_t mine = std::max<int64_t>(0, std::min(rows, V - rank * rows));
  head.value.narrow(0, 0, mine).copy_(whole.narrow(0, rank * rows, mine));
  head.grad = at::zeros({rows, D}, whole.options().dtype(type == at::kDouble ? at::kDouble : at::kFloat));
  return head;
}

}  // namespace maniple

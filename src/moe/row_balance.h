// Whether the rows that the ranks of a slice send each other for the experts arrive, each once and at
// its expert (layer L2 of docs/corruption.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace maniple {

struct ExpertRows {
  int64_t expert, count;  // consecutive rows for one expert
};

enum class Side { kSender, kReceiver };  // of a forward; in backward it is the other

// x [N, D] as it is. In forward and in backward a sender adds the sum over its rows of
// hash(row, expert) to `balance`, a receiver takes it off; so the balances of all ranks add up to 0
// modulo 2^64, whatever the order of the rows of an expert. `rows` describe x; `balance` must outlive
// the backward.
at::Tensor weigh_rows(const at::Tensor& x, const std::vector<ExpertRows>& rows, Side side,
                      uint64_t& balance);

}  // namespace maniple

// Bytes from memory to memory over the links of an epoch: gathers, broadcasts, exchanges, barriers.
// What arrives is written to its place as it comes, so the place is unspecified when wait throws.
#pragma once

#include <span>
#include <vector>

#include "links/operation.h"

namespace maniple {

class MoveOperation : public Operation {
 public:
  // Per member what it gets and what it sends; both sides agree on the sizes. Equal spans for
  // several members are hashed once. With `tokens` every pair of members exchanges an empty piece
  // even where there are no bytes: a barrier.
  MoveOperation(int self, std::vector<std::span<const uint8_t>> send,
                std::vector<std::span<uint8_t>> receive, bool tokens = false);

  Piece produce(int peer, int64_t piece, Buffer& buffer) override;
  std::span<uint8_t> place(int peer, int64_t piece, const Announced& announced,
                           Buffer& buffer) override;
  void consume(int, int64_t, const Announced&, std::span<const uint8_t>) override {}

 private:
  const std::vector<std::span<const uint8_t>> send_;
  const std::vector<std::span<uint8_t>> receive_;
  std::vector<int> first_;                     // the first member with the same span
  std::vector<std::vector<uint64_t>> hashes_;  // per member and piece; 0: not taken yet
};

}  // namespace maniple

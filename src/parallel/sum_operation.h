// The exchange of a step: an integer reduce-scatter. Every member sends each other member its
// addends of that member's part and adds what it gets for its own part, piece by piece while the
// next pieces travel. Direct and not a ring: the bytes on the wire are the same, every addend is as
// narrow as it was made (packed encoding of docs/numerics.md, chosen per piece where it pays), and
// no member waits for a chain of others.
//
// Checks (spec: docs/numerics.md): the hash of each payload is the link's. On top, each piece
// carries the linear checksum of its addends; their sum must be that of the reduced piece, which
// proves packing, staging, transport and addition together.
#pragma once

#include <span>
#include <vector>

#include "kernels/exact_sum.h"
#include "links/operation.h"

namespace maniple {

struct SumOptions {
  bool pack = true;
  bool check = true;
  uint32_t key = 0;  // of the checksums; equal in all members
};

class SumOperation : public Operation {
 public:
  // in: counts[r] elements for member r, one after the other; out: this member's part.
  SumOperation(int self, std::span<const int64_t> in, std::span<int64_t> out,
               const std::vector<int64_t>& counts, SumOptions options);

  // Elements of a piece: the grid of the checksums, counted from the start of each part.
  static constexpr int64_t kPieceElements = 32 << 10;
  static uint32_t piece_key(uint32_t key, int64_t piece);

  // After the end of the operation. Checksums of the addends of each piece of this member's part,
  // added over all members: what a copy of the reduced part can be compared with. Empty without
  // checks.
  const std::vector<ExactChecksum>& checksums() const { return checksums_; }
  // Pieces whose sum does not have the checksum of its addends: somebody computed or copied
  // wrongly.
  const std::vector<int64_t>& wrong_pieces() const { return wrong_; }

  Piece produce(int peer, int64_t piece, Buffer& buffer) override;
  std::span<uint8_t> place(int peer, int64_t piece, const Announced& announced,
                           Buffer& buffer) override;
  void consume(int peer, int64_t piece, const Announced& announced,
               std::span<const uint8_t> bytes) override;

 private:
  std::span<const int64_t> addends(int member, int64_t piece) const;

  const int self_;
  const std::span<const int64_t> in_;
  const std::span<int64_t> out_;
  std::vector<int64_t> offsets_;  // of the parts, and the end
  const SumOptions options_;
  std::vector<int> arrived_;  // addends per piece of this member's part, its own not counted
  std::vector<ExactChecksum> checksums_;
  std::vector<int64_t> wrong_;
};

}  // namespace maniple

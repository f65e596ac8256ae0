#include "parallel/sum_operation.h"

#include <algorithm>
#include <cstring>

#include "core/errors.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

constexpr uint32_t kDense = 1, kPacked = 2;  // encodings of a piece
// Packing pays while it saves at least an eighth; a look at the first elements decides.
constexpr int64_t kSampleElements = 1024;

bool pays(int64_t packed_bytes, int64_t elements) { return packed_bytes < 7 * elements; }

std::vector<int64_t> pieces_of(int self, const std::vector<int64_t>& counts, bool sending) {
  const auto pieces = [](int64_t n) {
    return (n + SumOperation::kPieceElements - 1) / SumOperation::kPieceElements;
  };
  std::vector<int64_t> result;
  for (size_t r = 0; r < counts.size(); ++r)
    result.push_back(static_cast<int>(r) == self ? 0 : pieces(counts[sending ? r : self]));
  return result;
}

// sum[i] = a[i] + b[i], b unaligned.
void add(const int64_t* a, const uint8_t* b, int64_t* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint64_t x;
    std::memcpy(&x, b + 8 * i, 8);
    sum[i] = static_cast<int64_t>(static_cast<uint64_t>(a[i]) + x);
  }
}

}  // namespace

SumOperation::SumOperation(int self, std::span<const int64_t> in, std::span<int64_t> out,
                           const std::vector<int64_t>& counts, SumOptions options)
    : Operation(pieces_of(self, counts, true), pieces_of(self, counts, false)),
      self_(self),
      in_(in),
      out_(out),
      offsets_{0},
      options_(options) {
  for (const int64_t n : counts) offsets_.push_back(offsets_.back() + n);
  MANIPLE_INVARIANT(static_cast<int64_t>(in.size()) == offsets_.back() &&
                        static_cast<int64_t>(out.size()) == counts[self],
                    "{} addends for parts of {}, {} sums for {}", in.size(), offsets_.back(),
                    out.size(), counts[self]);
  const int64_t pieces = (counts[self] + kPieceElements - 1) / kPieceElements;
  arrived_.assign(pieces, 0);
  if (options_.check) checksums_.resize(pieces);
}

uint32_t SumOperation::piece_key(uint32_t key, int64_t piece) {
  return exact_mix32(key + static_cast<uint32_t>(piece) * 0x9e3779b9u);
}

std::span<const int64_t> SumOperation::addends(int member, int64_t piece) const {
  const int64_t begin = piece * kPieceElements;
  const int64_t size = offsets_[member + 1] - offsets_[member];
  return in_.subspan(offsets_[member] + begin, std::min(kPieceElements, size - begin));
}

Operation::Piece SumOperation::produce(int peer, int64_t piece, Buffer& buffer) {
  const auto x = addends(peer, piece);
  const auto n = static_cast<int64_t>(x.size());
  Piece result;
  result.encoding = kDense;
  result.bytes = {reinterpret_cast<const uint8_t*>(x.data()), x.size_bytes()};
  if (options_.check) {
    const ExactChecksum c = exact_checksum(x, piece_key(options_.key, piece));
    result.note = {c.c1, c.c2};
  }
  if (options_.pack) {
    const auto room = buffer.take(exact_packed_bound(n));
    const int64_t sample = std::min(n, kSampleElements);
    if (pays(exact_pack(x.first(sample), room), sample)) {
      const int64_t packed = exact_pack(x, room);
      if (pays(packed, n)) {
        result.encoding = kPacked;
        result.bytes = room.first(packed);
      }
    }
  }
  result.hash = message_hash(result.bytes);
  return result;
}

std::span<uint8_t> SumOperation::place(int, int64_t piece, const Announced& announced,
                                       Buffer& buffer) {
  const auto n = static_cast<int64_t>(addends(self_, piece).size());
  const bool right = announced.encoding == kDense    ? announced.bytes == 8 * n
                     : announced.encoding == kPacked ? announced.bytes <= exact_packed_bound(n)
                                                     : false;
  if (!right)
    throw CommError(
        fmt::format("sent {} bytes in encoding {} for {} sums: the members do not make "
                    "the same calls",
                    announced.bytes, announced.encoding, n));
  return buffer.take(announced.bytes);
}

void SumOperation::consume(int, int64_t piece, const Announced& announced,
                           std::span<const uint8_t> bytes) {
  const auto own = addends(self_, piece);
  const auto sum = out_.subspan(piece * kPieceElements, own.size());
  const uint32_t key = piece_key(options_.key, piece);
  const bool first = arrived_[piece]++ == 0;
  if (first && options_.check) checksums_[piece] = exact_checksum(own, key);
  if (announced.encoding == kDense) {
    add(first ? own.data() : sum.data(), bytes.data(), sum.data(),
        static_cast<int64_t>(sum.size()));
  } else {
    if (first) std::memcpy(sum.data(), own.data(), own.size_bytes());
    if (exact_unpack_add(bytes, sum) != static_cast<int64_t>(bytes.size()))
      throw CommError("sent packed sums that are no encoding of a piece");
  }
  if (!options_.check) return;
  checksums_[piece] += ExactChecksum{announced.note[0], announced.note[1]};
  if (arrived_[piece] == static_cast<int>(offsets_.size()) - 2 &&
      exact_checksum(sum, key) != checksums_[piece])
    wrong_.push_back(piece);
}

}  // namespace maniple

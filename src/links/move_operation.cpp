#include "links/move_operation.h"

#include <algorithm>

#include "core/errors.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;

template <typename Spans>
std::vector<int64_t> pieces(int self, const Spans& spans, bool tokens) {
  std::vector<int64_t> counts;
  for (size_t i = 0; i < spans.size(); ++i) {
    const auto bytes = static_cast<int64_t>(spans[i].size());
    counts.push_back(static_cast<int>(i) == self
                         ? 0
                         : std::max<int64_t>((bytes + kPieceBytes - 1) / kPieceBytes, tokens));
  }
  return counts;
}

template <typename Span>
Span piece_of(Span whole, int64_t piece) {
  const auto begin = std::min<size_t>(piece * kPieceBytes, whole.size());
  return whole.subspan(begin, std::min<size_t>(kPieceBytes, whole.size() - begin));
}

}  // namespace

MoveOperation::MoveOperation(int self, std::vector<std::span<const uint8_t>> send,
                             std::vector<std::span<uint8_t>> receive, bool tokens)
    : Operation(pieces(self, send, tokens), pieces(self, receive, tokens)),
      send_(std::move(send)),
      receive_(std::move(receive)),
      hashes_(send_.size()) {
  for (size_t i = 0; i < send_.size(); ++i) {
    int first = 0;
    while (send_[first].data() != send_[i].data() || send_[first].size() != send_[i].size())
      ++first;
    first_.push_back(first);
  }
}

Operation::Piece MoveOperation::produce(int peer, int64_t piece, Buffer&) {
  const auto bytes = piece_of(send_[peer], piece);
  auto& hashes = hashes_[first_[peer]];
  if (static_cast<int64_t>(hashes.size()) <= piece) hashes.resize(piece + 1, 0);
  if (hashes[piece] == 0) hashes[piece] = message_hash(bytes);
  return {bytes, hashes[piece], 0, {}};
}

std::span<uint8_t> MoveOperation::place(int peer, int64_t piece, const Announced& announced,
                                        Buffer&) {
  const auto to = piece_of(receive_[peer], piece);
  if (announced.bytes != static_cast<int64_t>(to.size()) || announced.encoding != 0)
    throw CommError(
        fmt::format("sent a piece of {} bytes where {} were due: the members do not "
                    "make the same calls",
                    announced.bytes, to.size()));
  return to;
}

}  // namespace maniple

#include "parallel/mpi_sum.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/exact_sum.h"
#include "parallel/mpi_wait.h"

namespace maniple {
namespace {

constexpr int64_t kDepth = 2;  // receives under way per peer

// Room for a piece in either encoding.
int64_t slot_bytes() { return exact_packed_bound(MpiSum::kPieceElements); }

int64_t num_pieces(int64_t elements) {
  return (elements + MpiSum::kPieceElements - 1) / MpiSum::kPieceElements;
}

template <typename T>
std::span<T> piece_of(std::span<T> part, int64_t piece) {
  const size_t begin = piece * MpiSum::kPieceElements;
  return part.subspan(begin, std::min<size_t>(MpiSum::kPieceElements, part.size() - begin));
}

std::span<const int64_t> part_of(std::span<const int64_t> in, const std::vector<int64_t>& counts,
                                 int rank) {
  const auto begin = std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
  return in.subspan(begin, counts[rank]);
}

int rank_in(MPI_Comm comm) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  return rank;
}

}  // namespace

MpiSum::MpiSum(MPI_Comm comm, int tag, std::span<const int64_t> in, std::span<int64_t> out,
               const std::vector<int64_t>& counts, double deadline_s)
    : comm_(comm),
      tag_(tag),
      own_(part_of(in, counts, rank_in(comm))),
      out_(out),
      deadline_s_(deadline_s),
      pieces_(num_pieces(static_cast<int64_t>(out.size()))),
      arrived_(pieces_) {
  MANIPLE_INVARIANT(own_.size() == out.size(), "{} addends for {} sums", own_.size(), out.size());
  const int size = static_cast<int>(counts.size()), self = rank_in(comm);
  if (size == 1) std::copy(own_.begin(), own_.end(), out_.begin());
  // From the next rank on, so that not all send to the same one at a time.
  for (int k = 1; k < size; ++k) {
    const int rank = (self + k) % size;
    Peer& peer = peers_.emplace_back(Peer{rank, 0, 0, std::vector<MPI_Request>(kDepth), nullptr});
    if (pieces_) peer.buffer.reset(new uint8_t[kDepth * slot_bytes()]);
    while (peer.posted < std::min(pieces_, kDepth)) post(peer);
  }
  for (int k = 1; k < size; ++k) {
    const int rank = (self + k) % size;
    send(rank, part_of(in, counts, rank));
  }
}

MpiSum::~MpiSum() {
  for (Peer& peer : peers_)
    for (int64_t p = peer.added; p < peer.posted; ++p) {
      MPI_Cancel(&peer.requests[p % kDepth]);
      MPI_Request_free(&peer.requests[p % kDepth]);
    }
  bool pending = false;
  for (MPI_Request& request : sends_)
    if (request != MPI_REQUEST_NULL) {
      MPI_Request_free(&request);
      pending = true;
    }
  // Somebody may still read what was packed.
  if (pending)
    for (auto& packed : packed_) (void)packed.release();
}

// Small values take fewer bytes packed; a dense piece goes out of the addends' own memory. The
// receiver tells one from the other by the length.
void MpiSum::send(int rank, std::span<const int64_t> part) {
  const int64_t pieces = num_pieces(static_cast<int64_t>(part.size()));
  if (pieces == 0) return;
  const auto bound = exact_packed_bound(static_cast<int64_t>(part.size())) + pieces;
  uint8_t* room = packed_.emplace_back(new uint8_t[bound]).get();
  for (int64_t p = 0; p < pieces; ++p) {
    const auto piece = piece_of(part, p);
    const void* bytes = piece.data();
    auto length = static_cast<int64_t>(piece.size_bytes());
    const int64_t most = exact_packed_bound(static_cast<int64_t>(piece.size()));
    const int64_t packed = exact_pack(piece, {room, static_cast<size_t>(most)});
    if (packed < length) {
      bytes = room;
      length = packed;
      room += packed;
    }
    MPI_Isend(bytes, static_cast<int>(length), MPI_BYTE, rank, tag_, comm_, &sends_.emplace_back());
  }
}

void MpiSum::post(Peer& peer) {
  const int64_t slot = peer.posted++ % kDepth;
  MPI_Irecv(peer.buffer.get() + slot * slot_bytes(), static_cast<int>(slot_bytes()), MPI_BYTE,
            peer.rank, tag_, comm_, &peer.requests[slot]);
}

void MpiSum::add(Peer& peer, int64_t bytes) {
  const int64_t piece = peer.added++;
  const uint8_t* from = peer.buffer.get() + piece % kDepth * slot_bytes();
  const auto sum = piece_of(out_, piece);
  const int64_t* own = arrived_[piece]++ == 0 ? piece_of(own_, piece).data() : sum.data();
  if (bytes == static_cast<int64_t>(sum.size_bytes())) {
    for (size_t i = 0; i < sum.size(); ++i) {
      uint64_t x;
      std::memcpy(&x, from + 8 * i, 8);
      sum[i] = static_cast<int64_t>(static_cast<uint64_t>(own[i]) + x);
    }
    return;
  }
  if (own != sum.data()) std::copy(own, own + sum.size(), sum.data());
  if (exact_unpack_add({from, static_cast<size_t>(bytes)}, sum) != bytes)
    throw CommError(fmt::format("rank {} sent {} bytes for {} sums: the ranks do not make the same "
                                "calls", peer.rank, bytes, sum.size()));
}

bool MpiSum::receive() {
  bool all = true;
  for (Peer& peer : peers_)
    while (peer.added < pieces_) {
      int done = 0, bytes = 0;
      MPI_Status status;
      MPI_Test(&peer.requests[peer.added % kDepth], &done, &status);
      if (!done) {
        all = false;
        break;
      }
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      add(peer, bytes);
      if (peer.posted < pieces_) post(peer);
    }
  return all;
}

void MpiSum::wait() {
  wait_for("reduce_scatter", deadline_s_, [&] {
    if (!receive()) return false;
    int done = 0;
    MPI_Testall(static_cast<int>(sends_.size()), sends_.data(), &done, MPI_STATUSES_IGNORE);
    return done != 0;
  });
}

}  // namespace maniple

// An integer reduce-scatter over MPI messages: every rank sends each other rank the addends of its
// part, piece by piece and packed (docs/numerics.md), and adds what it gets for its own. Direct,
// since a library's algorithm may reduce everything at one rank and scatter the sums.
//
// All pieces are sent at the beginning. A receiver needs nothing more of the sender where one
// process can read another's memory, so progress() on one side is enough to move them.
#pragma once

#include <mpi.h>

#include <memory>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace maniple {

class MpiSum : public Work {
 public:
  // in: counts[r] addends for rank r, one part after the other; out: this rank's sums. `tag` belongs
  // to this operation among those under way on `comm`.
  MpiSum(MPI_Comm comm, int tag, std::span<const int64_t> in, std::span<int64_t> out,
         const std::vector<int64_t>& counts, double deadline_s);
  ~MpiSum() override;  // without a wait: an exception passes by, and the process is about to end
  void progress() override { (void)receive(); }
  void wait() override;

  static constexpr int64_t kPieceElements = 64 << 10;

 private:
  struct Peer {
    int rank;
    int64_t posted = 0, added = 0;  // pieces
    std::vector<MPI_Request> requests;  // of the pieces added, added + 1...; piece p in slot p mod depth
    std::unique_ptr<uint8_t[]> buffer;
  };
  void send(int rank, std::span<const int64_t> part);
  void post(Peer& peer);
  bool receive();  // adds what is there; true when all is
  void add(Peer& peer, int64_t bytes);

  const MPI_Comm comm_;
  const int tag_;
  const std::span<const int64_t> own_;
  const std::span<int64_t> out_;
  const double deadline_s_;
  const int64_t pieces_;
  std::vector<int> arrived_;  // addends of each piece of out
  std::vector<Peer> peers_;
  std::vector<MPI_Request> sends_;
  std::vector<std::unique_ptr<uint8_t[]>> packed_;
};

}  // namespace maniple

// Messages of tensors on GPUs by NCCL, for ranks that have a GPU each: those of a slice, or the equal
// positions of the slices of an elastic job. Host tensors go by the communicator of host memory that
// this one is made from, which also carries NCCL's id and the barrier. Run over a stub of NCCL
// (tests/parallel/nccl) but not yet on several GPUs: no machine with them was at hand.
//
// All work is enqueued on the current stream, so it is ordered with the computation, and equally
// ordered on all ranks for all communicators. wait() waits on the host, which is where the deadline
// is kept: NCCL's communicator is non-blocking, a call that outlasts the deadline or meets an error
// aborts it and throws CommError, as does every later call.
#pragma once

#include "parallel/communicator.h"

namespace maniple {

// Collective over `host`. The current GPU is the one of the calling thread. A communicator of one
// rank (split makes them) is one of staged_communicator.h.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     double deadline_s = 600);

}  // namespace maniple

// A rank of one slice of an elastic job (docs/elastic.md). The slice is an MPI world of its own; the
// membership (elastic/membership.h) says what to do, the leader (position 0) hears it and tells the
// other ranks, and every rank has links to its equals in the other slices. The same process trains
// through any number of epochs.
#pragma once

#include "core/config.h"
#include "core/errors.h"
#include "launch/rank_control.h"
#include "parallel/communicator.h"

namespace maniple {

// Trains until the job's verdict; collective over `slice`. `line` is this rank's. Returns the code
// to leave with; throws the errors of core/errors.h, which end the slice.
ExitCode train_slice(const Config& config, std::unique_ptr<Communicator> slice,
                     const RankControl::Config& line);

}  // namespace maniple

// A training run: everything between a resolved config and its exit code.
#pragma once

#include "core/config.h"
#include "core/errors.h"
#include "parallel/communicator.h"

namespace maniple {

// Collective over `world`. Returns kOk or kPreempted; throws the errors of core/errors.h.
ExitCode train(const Config& config, std::unique_ptr<Communicator> world);

}  // namespace maniple

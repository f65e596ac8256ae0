// `maniple bench`: how fast this machine trains a config, and how far that is from what its matrix
// products reach.
#pragma once

#include "core/config.h"
#include "core/errors.h"
#include "parallel/communicator.h"

namespace maniple {

// GFLOP/s of one rank: the best of several square products (2048) in the compute type of
// `precision`, with the threads set. All ranks measure at the same time.
double measure_product_peak(const std::string& precision);

// Trains a few steps of `config` in a temporary run folder, without checkpoints or evaluation, and
// prints tokens per second, the share of the product peak and the time of each phase (medians over
// the steps after the first two). Collective over `world`.
ExitCode bench(Config config, std::unique_ptr<Communicator> world);

}  // namespace maniple

// Computes a step of a past run again: after an alarm or a loss spike.
#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "core/errors.h"
#include "parallel/communicator.h"

namespace maniple {

struct ReplayRequest {
  std::string run;   // folder; its resolved config, checkpoints and metrics.jsonl are read
  int64_t step = 0;  // from 1
  std::optional<int64_t> unit;  // only this one, and no update
  std::string out;   // JSON lines, one per unit; empty: none
};

// Goes on from the newest good checkpoint before the step (else from the run's first weights) on one
// slice; the world is its ranks. Prints loss, gradient norm and fingerprint of each unit, and with
// `out` those of each layer; then the whole step, compared with its row in metrics.jsonl. With the
// slice shape of the run all have the bits that the run had. Returns kUnhealthy when the row differs.
// Throws ConfigError, NoInputError, CheckpointError.
ExitCode replay_step(const ReplayRequest& request, std::unique_ptr<Communicator> world);

}  // namespace maniple

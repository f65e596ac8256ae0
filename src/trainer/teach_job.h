// Teaching by slices that may die (maniple launch --teach): one mpirun of `maniple teach` per slice,
// all on this machine. They share the files of the store among them (data/teacher_writers.h), so a
// slice that dies loses the file that it was at; it is started again.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/errors.h"

namespace maniple {

struct TeachJob {
  std::vector<std::string> arguments;  // of `maniple teach`
  // Of every slice, added.
  std::vector<std::pair<std::string, std::string>> environment;
};

// parallel.slices of them. The first slice speaks on this process's output, the others in
// distill.store/logs. Returns kOk when the store has all rows, kPreempted after TERM or INT, else the
// code of the slice that was given up last (after elastic.max_restarts, or for a reason that would
// not go away). Nothing of the slices is left when it returns. Throws ConfigError, IoError.
ExitCode run_teach_job(const Config& config, const TeachJob& job);

}  // namespace maniple

// The commands of an elastic job (docs/elastic.md): launch starts the processes of the job,
// coordinator and agent are two of them, ctl asks a running job.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "core/errors.h"

namespace maniple {

// Runs the whole job on this machine and returns its verdict. Throws ConfigError, IoError.
ExitCode launch_job(Config config);

// Writes a teacher store instead, with one mpirun of `maniple teach` with these arguments per slice
// (trainer/teach_job.h).
ExitCode launch_teachers(const Config& config, const std::vector<std::string>& arguments);

// The coordinator of the job in config.run.dir, its token on standard input and its listening
// socket in the environment (launch/launcher.h).
ExitCode coordinate_job(const Config& config);

// The agent of the slot that the environment names; `config_path` is what its ranks read.
ExitCode run_agent(const Config& config, const std::string& config_path);

// Asks the job of a run folder: status, drain SLICE, readmit SLICE, pause, resume, scale N. Prints
// the answer. Throws UsageError for other requests, NoInputError when no job is there.
ExitCode control_job(const std::string& run_dir, const std::vector<std::string>& request);

}  // namespace maniple

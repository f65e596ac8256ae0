// What an elastic job did with its time, from the files of its run folder (docs/formats.md): the
// journals elastic/slice-N.jsonl and events.jsonl. Of a run that was launched several times: of the
// last launch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "metrics/console.h"

namespace maniple {

struct JobReport {
  // Seconds of the job; together its length.
  struct Times {
    double steps = 0;        // that led to commits
    double redone = 0;       // to commits of steps that had been committed before a rollback
    double replaying = 0;    // from a suspicion to the commit of its step
    double interrupted = 0;  // from the last commit of an epoch to its end
    double agreeing = 0;     // between the epochs; pauses too
    double restoring = 0;    // state and parameters
    double sum() const {
      return steps + redone + replaying + interrupted + agreeing + restoring;
    }
  };
  struct Epoch {
    int64_t number = 0;
    double begin = 0;  // of its restore, since that of the first
    int64_t from_step = 0, steps = 0;
    std::vector<int64_t> slices;
    std::string cause;
    Times before;  // from the last commit of the epoch before to the end of its own restore
  };
  // One process life of a slice, seconds since the job's first restore.
  struct Life {
    int64_t slice = 0, life = 0;
    double registered = 0, trains = 0, end = 0;  // trains: of its first epoch; end when there is none
  };
  // Where the time of a slice's committed steps went, at its leader.
  struct Spent {
    int64_t slice = 0;
    std::vector<std::pair<std::string, double>> seconds;  // by phase
    double memory_mib = 0;                                // peak of a rank
  };
  int64_t last_step = 0;
  Times times;
  std::vector<Spent> spent;
  std::vector<Epoch> epochs;
  std::vector<Life> lives;
  std::vector<std::string> alarms;  // findings, strikes, quarantines, rollbacks: "event: text"
  double goodput() const { return times.sum() > 0 ? times.steps / times.sum() : 0; }
};

// Throws NoInputError for a folder without journals, DataError for one that never trained. Clocks of
// several hosts are set by the commits, which all slices of an epoch reach together.
JobReport read_job_report(const std::string& run_dir);

// Where the time went, the epochs and what each change cost, the time line of the slices.
std::string format_job_report(const JobReport& report, const ConsoleStyle& style);

}  // namespace maniple

// From the outcome of a step to the numbers of a report (keys: docs/formats.md).
#pragma once

#include "metrics/step_report.h"
#include "trainer/load_metrics.h"
#include "trainer/step.h"

namespace maniple {

// What the ranks know apart from each other.
struct JobNumbers {
  double logit_max = 0, unit_max_vio = 0;  // largest over ranks
  double rss_mib = 0, rss_peak_mib = 0;    // resident memory, largest over ranks
};
// Collective over the world: the same shape on every rank in every report.
JobNumbers gather_job_numbers(TrainStep& step, ProcessMesh& mesh);

// The report of a step from its outcome alone: losses, gradients, load, router. Equal bits on all
// ranks, whatever the number of slices.
StepReport report_outcome(int64_t step, double lr, const StepOutcome& o, const TrainedModel& model,
                          const MeshShape& mesh);
// Adds what `job` and this rank say about load, times and memory. `watch` has seen the step's
// counts.
void add_job_metrics(StepReport& report, const StepOutcome& o, const JobNumbers& job,
                     const MeshShape& mesh, const LoadWatch& watch);

}  // namespace maniple

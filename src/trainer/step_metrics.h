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

// Adds to `report` what `o` and `job` say about losses, gradients, load, router, times and memory.
// `watch` has seen the step's counts.
void add_step_metrics(StepReport& report, const StepOutcome& o, const JobNumbers& job,
                      const TrainedModel& model, const MeshShape& mesh, const LoadWatch& watch);

}  // namespace maniple

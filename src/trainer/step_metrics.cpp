#include "trainer/step_metrics.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

namespace maniple {
namespace {

// A field of /proc/self/status in MiB; 0 where the system has none.
double memory_mib(const char* field) {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (!file) return 0;
  char line[256];
  double kib = 0;
  while (std::fgets(line, sizeof line, file))
    if (std::strncmp(line, field, std::strlen(field)) == 0)
      kib = std::strtod(line + std::strlen(field) + 1, nullptr);
  std::fclose(file);
  return kib / 1024;
}

void add_load(StepReport& report, const StepOutcome& o, const MeshShape& mesh) {
  const LoadMetrics load = measure_load(o.counts, mesh.ep);
  auto add = [&](const char* name, double value) { report.extra.emplace_back(name, value); };
  add("load_max_over_mean", load.worst);
  add("load_max_over_mean_layers", load.mean);
  add("load_max_over_mean_p50", load.p50);
  add("load_max_over_mean_p95", load.p95);
  add("max_vio", load.worst - 1);
  add("load_cv", load.variation);
  add("load_ranks_max_over_mean", load.ranks_max_over_mean);
  add("experts_without_tokens", static_cast<double>(load.without_tokens));
  add("dropped_fraction",
      std::accumulate(o.dropped.begin(), o.dropped.end(), 0.0) / static_cast<double>(o.dropped.size()));
  report.lists.emplace_back("load_max_over_mean_by_layer", load.max_over_mean);
  report.lists.emplace_back("dropped_fraction_by_layer", o.dropped);
}

void add_router(StepReport& report, const StepOutcome& o, const TrainedModel& model) {
  auto add = [&](const char* name, double value) { report.extra.emplace_back(name, value); };
  add("router_entropy", o.router_entropy);
  add("router_entropy_of_mean", o.router_entropy_of_mean);
  add("router_top1", o.router_top1);
  add("router_score_sum", o.router_score);
  double squares = 0, least = 0, most = 0;
  for (MoeLayer* layer : model.moe_layers) {
    const at::Tensor& b = layer->router().bias;
    squares += b.to(at::kDouble).square().sum().item<double>();
    least = std::min(least, b.min().item<double>());
    most = std::max(most, b.max().item<double>());
  }
  add("router_bias_norm", std::sqrt(squares));
  add("router_bias_min", least);
  add("router_bias_max", most);
}

void add_times(StepReport& report, const PhaseSeconds& seconds) {
  auto of = [&](Phase phase) { return seconds[static_cast<size_t>(phase)]; };
  auto add = [&](const char* name, double value) { report.extra.emplace_back(name, value); };
  add("time_data", of(Phase::kData));
  add("time_compute", of(Phase::kForward) + of(Phase::kDispatch) + of(Phase::kExperts) +
                          of(Phase::kCombine) + of(Phase::kBackward));
  add("time_forward", of(Phase::kForward));
  add("time_dispatch", of(Phase::kDispatch));
  add("time_experts", of(Phase::kExperts));
  add("time_combine", of(Phase::kCombine));
  add("time_backward", of(Phase::kBackward));
  add("time_fold", of(Phase::kFold));
  add("time_exchange", of(Phase::kExchange));
  add("time_overlap", of(Phase::kOverlap));
  add("time_vote", of(Phase::kVote));
  add("time_update", of(Phase::kUpdate));
  add("time_publish", of(Phase::kPublish));
}

}  // namespace

JobNumbers gather_job_numbers(TrainStep& step, ProcessMesh& mesh) {
  const TrainStep::RankNumbers rank = step.rank_numbers();
  const at::Tensor mine =
      at::tensor(std::vector<double>{rank.logit_max, rank.unit_max_vio, memory_mib("VmRSS"),
                                     memory_mib("VmHWM")},
                 at::TensorOptions(at::kDouble));
  at::Tensor all = at::empty({mesh.world().size(), mine.numel()}, mine.options());
  mesh.world().all_gather(mine, all);
  const at::Tensor most = all.amax(0);
  const double* m = most.data_ptr<double>();
  return {m[0], m[1], m[2], m[3]};
}

StepReport report_outcome(int64_t step, double lr, const StepOutcome& o, const TrainedModel& model,
                          const MeshShape& mesh) {
  StepReport report;
  report.step = step;
  report.loss = o.loss;
  report.grad_norm = o.grad_norm;
  report.lr = lr;
  report.tokens = o.num_targets;
  report.aux_loss = o.aux_loss;
  report.z_loss = o.z_loss;
  auto add = [&](const char* name, double value) { report.extra.emplace_back(name, value); };
  for (const auto& metric : o.objective) report.extra.push_back(metric);
  if (!o.counts.empty()) {
    add("aux_loss_weighted", o.weighted_aux_loss);
    add("z_loss_weighted", o.weighted_z_loss);
    add_load(report, o, mesh);
    add_router(report, o, model);
    report.lists.emplace_back("aux_loss_by_layer", o.aux_losses);
    report.lists.emplace_back("z_loss_by_layer", o.z_losses);
    const double experts = o.expert_grad_norm, router = o.router_grad_norm;
    const double dense = o.grad_norm * o.grad_norm - experts * experts - router * router;
    add("grad_norm_dense", std::sqrt(std::max(0.0, dense)));
    add("grad_norm_experts", experts);
    add("grad_norm_router", router);
  }
  report.lists.emplace_back("hidden_rms_by_layer", o.hidden_rms);
  add("clipped", o.clip < 1);
  add("skipped", o.skipped);
  return report;
}

void add_job_metrics(StepReport& report, const StepOutcome& o, const JobNumbers& job,
                     const MeshShape& mesh, const LoadWatch& watch) {
  auto add = [&](const char* name, double value) { report.extra.emplace_back(name, value); };
  if (!o.counts.empty()) {
    add("experts_starving", static_cast<double>(watch.num_starving()));
    add("max_vio_unit", job.unit_max_vio);
    add("router_logit_max", job.logit_max);
  }
  add("attempts", static_cast<double>(o.attempts));
  add("slices", static_cast<double>(mesh.slices));
  add_times(report, o.seconds);
  add("tokens_per_s_rank", report.tokens_per_s / static_cast<double>(mesh.num_ranks()));
  add("memory_rss_mib", job.rss_mib);
  add("memory_rss_peak_mib", job.rss_peak_mib);
}

}  // namespace maniple

// The numbers of a report against each other and across layouts.
#include "trainer/step_metrics.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

#include "tiny_trainer.h"

namespace maniple {
namespace {

using Numbers = std::map<std::string, double>;

// Every number of the third step's report.
Numbers third_report(const Config& config, int num_ranks) {
  Numbers numbers;
  std::mutex mutex;
  run_local_ranks(num_ranks, [&](std::unique_ptr<Communicator> world) {
    Trainer t(config, std::move(world));
    LoadWatch watch(50, 0);
    StepOutcome o;
    for (int64_t s = 1; s <= 3; ++s) {
      o = t.step.run(s, config.optim.lr);
      watch.update(o.counts);
    }
    const JobNumbers job = gather_job_numbers(t.step, t.mesh);
    StepReport report = report_outcome(3, config.optim.lr, o, t.model, t.shape);
    report.tokens_per_s = 100;
    add_job_metrics(report, o, job, t.shape, watch);
    const std::lock_guard lock(mutex);
    if (!numbers.empty()) return;
    numbers["grad_norm"] = o.grad_norm;
    for (const auto& [name, value] : report.extra) numbers[name] = value;
    for (const auto& [name, values] : report.lists)
      for (size_t i = 0; i < values.size(); ++i) numbers[fmt::format("{}/{}", name, i)] = values[i];
  });
  return numbers;
}

TEST(StepMetrics, AgreeWithEachOther) {
  Config c = tiny_config();
  c.moe.aux_coef = 0.01;
  Numbers n = third_report(c, 1);
  const double dense = n["grad_norm_dense"], experts = n["grad_norm_experts"], router = n["grad_norm_router"];
  EXPECT_NEAR(std::sqrt(dense * dense + experts * experts + router * router), n["grad_norm"], 1e-9);
  EXPECT_GT(dense, router);
  EXPECT_GT(router, 0);
  // Entropy is concave, a maximum convex; units are equally large.
  EXPECT_GE(n["router_entropy_of_mean"], n["router_entropy"]);
  EXPECT_LE(n["router_entropy_of_mean"], std::log(8.0) + 1e-9);
  EXPECT_GE(n["max_vio_unit"], n["max_vio"]);
  EXPECT_GE(n["load_max_over_mean"], n["load_max_over_mean_p95"]);
  EXPECT_GT(n["router_top1"], 1.0 / 8);
  EXPECT_LE(n["router_top1"], 1);
  EXPECT_GT(n["memory_rss_peak_mib"], 10);
  EXPECT_GE(n["memory_rss_peak_mib"], n["memory_rss_mib"]);
  const double aux = n["aux_loss_by_layer/0"] + n["aux_loss_by_layer/1"];
  EXPECT_GT(aux, 1.9);
  // Per target, and targets are a little fewer than tokens.
  EXPECT_NEAR(n["aux_loss_weighted"] / (0.01 * aux), 1, 0.05);
  EXPECT_GE(n["aux_loss_weighted"], 0.01 * aux - 1e-9);
  double phases = 0;
  for (const char* phase : {"forward", "dispatch", "experts", "combine", "backward"}) {
    EXPECT_GT(n[std::string("time_") + phase], 0) << phase;
    phases += n[std::string("time_") + phase];
  }
  EXPECT_NEAR(phases, n["time_compute"], 1e-9);
}

TEST(StepMetrics, SameOnEveryLayout) {
  Config c = tiny_config();
  c.train.precision = "fp64";
  const Numbers one = third_report(c, 1);
  for (const auto& [slices, tp, ep] : {std::tuple{2, 1, 1}, {1, 2, 2}, {1, 1, 2}}) {
    c.parallel = {.slices = slices, .tp = tp, .ep = ep, .etp = 1};
    Numbers other = third_report(c, 2);
    for (const auto& [name, value] : one) {
      const bool of_layout = name.starts_with("time_") || name.starts_with("memory_") ||
                             name == "slices" || name == "tokens_per_s_rank" ||
                             name == "load_ranks_max_over_mean";
      if (of_layout) continue;
      EXPECT_NEAR(other[name], value, 1e-7 * std::max(1.0, std::abs(value))) << name;
    }
  }
}

TEST(HiddenRms, IsThatOfWhatTheLayersGet) {
  Config c = tiny_config();
  c.batch = {.rows = 1, .units = 1, .micro_batch_rows = 1, .seq_len = 24};
  run_local_ranks(1, [&](std::unique_ptr<Communicator> world) {
    Trainer t(c, std::move(world));
    std::vector<double> expected;
    t.model.decoder->on_hidden = [&](const at::Tensor& x) {
      expected.push_back(x.detach().to(at::kDouble).square().mean().sqrt().item<double>());
    };
    const StepOutcome o = t.step.run(1, c.optim.lr);
    ASSERT_EQ(o.hidden_rms.size(), 3u);
    ASSERT_EQ(expected.size(), 3u);
    for (size_t l = 0; l < 3; ++l) EXPECT_NEAR(o.hidden_rms[l] / expected[l], 1, 1e-5);
  });
}

// An error in one element that the loss hardly feels, since the next norm tames it.
TEST(HiddenRms, ShowsOneWildElement) {
  const Config c = tiny_config();
  std::vector<StepOutcome> seen;
  for (const double value : {0.0, 1e4, std::numeric_limits<double>::infinity()})
    run_local_ranks(1, [&](std::unique_ptr<Communicator> world) {
      Trainer t(c, std::move(world));
      int call = 0;
      t.model.decoder->on_hidden = [&](const at::Tensor& x) {
        const at::NoGradGuard no_grad;
        if (call++ == 1 && value != 0) x.detach().view({-1})[5] = value;
      };
      seen.push_back(t.step.run(1, c.optim.lr));
    });
  const auto gain = [&](size_t i, size_t layer) { return seen[i].hidden_rms[layer + 1] / seen[i].hidden_rms[layer]; };
  EXPECT_EQ(seen[1].hidden_rms[0], seen[0].hidden_rms[0]);
  EXPECT_GT(gain(1, 0), 50 * gain(0, 0));
  EXPECT_LT(std::abs(seen[1].loss / seen[0].loss - 1), 0.1);
  EXPECT_TRUE(seen[2].skipped);
  EXPECT_GT(gain(2, 0), 50 * gain(0, 0));
}

}  // namespace
}  // namespace maniple

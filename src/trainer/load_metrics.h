// What the counts of a step say about the balance of the experts (spec/moe.md 3, docs/formats.md).
// Pure arithmetic on one table; every load metric derives from it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace maniple {

using CountTable = std::vector<std::vector<int64_t>>;  // [MoE layers][experts], token slots

struct LoadMetrics {
  std::vector<double> max_over_mean;  // per layer: fullest expert / mean
  double worst = 0, mean = 0, p50 = 0, p95 = 0;  // of max_over_mean, over layers
  double variation = 0;  // standard deviation / mean of the experts' tokens, mean over layers
  double ranks_max_over_mean = 0;  // slots received by the fullest ep rank / mean, worst layer
  int64_t without_tokens = 0;      // experts, all layers
};
// `counts` has at least one layer; ep divides its experts.
LoadMetrics measure_load(const CountTable& counts, int64_t ep);

// The smallest value that at least `share` of the values do not exceed (nearest rank).
double percentile(std::vector<double> values, double share);

// Follows the load over the steps: experts that starve, imbalance that stays.
class LoadWatch {
 public:
  // starved_after: steps without a token after which an expert counts as starving. warn_max_vio:
  // MaxVio (worst layer) that deserves a warning when it stays above for as many steps; 0: none.
  LoadWatch(int64_t starved_after, double warn_max_vio)
      : starved_after_(starved_after), warn_max_vio_(warn_max_vio) {}

  // Call once a step. Returns warnings, each once until its cause has gone.
  std::vector<std::string> update(const CountTable& counts);
  int64_t num_starving() const { return static_cast<int64_t>(starving_.size()); }

 private:
  const int64_t starved_after_;
  const double warn_max_vio_;
  CountTable idle_;  // steps since the last token
  std::vector<std::pair<int64_t, int64_t>> starving_;  // (layer, expert)
  int64_t unbalanced_ = 0;  // steps in a row
};

}  // namespace maniple

#include "trainer/load_metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"

namespace maniple {

double percentile(std::vector<double> values, double share) {
  MANIPLE_INVARIANT(!values.empty(), "no values");
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
}

LoadMetrics measure_load(const CountTable& counts, int64_t ep) {
  LoadMetrics m;
  const auto layers = static_cast<double>(counts.size());
  for (const auto& layer : counts) {
    const auto experts = static_cast<int64_t>(layer.size());
    double total = 0, top = 0, squares = 0, fullest = 0;
    std::vector<double> ranks(static_cast<size_t>(ep), 0);
    for (int64_t e = 0; e < experts; ++e) {
      const auto x = static_cast<double>(layer[e]);
      total += x;
      top = std::max(top, x);
      squares += x * x;
      ranks[e / (experts / ep)] += x;
      m.without_tokens += layer[e] == 0;
    }
    for (double r : ranks) fullest = std::max(fullest, r);
    if (total == 0) total = 1;  // a step without tokens: 0 / 0 is reported as 0
    const double average = total / static_cast<double>(experts);
    m.max_over_mean.push_back(top / average);
    m.mean += top / average / layers;
    m.variation +=
        std::sqrt(std::max(0.0, squares / static_cast<double>(experts) - average * average)) /
        average / layers;
    m.ranks_max_over_mean =
        std::max(m.ranks_max_over_mean, fullest / (total / static_cast<double>(ep)));
  }
  m.worst = percentile(m.max_over_mean, 1);
  m.p50 = percentile(m.max_over_mean, 0.5);
  m.p95 = percentile(m.max_over_mean, 0.95);
  return m;
}

std::vector<std::string> LoadWatch::update(const CountTable& counts) {
  std::vector<std::string> warnings;
  if (counts.empty()) return warnings;
  if (idle_.empty())
    for (const auto& layer : counts) idle_.emplace_back(layer.size(), 0);
  starving_.clear();
  for (size_t l = 0; l < counts.size(); ++l)
    for (size_t e = 0; e < counts[l].size(); ++e) {
      int64_t& idle = idle_[l][e];
      idle = counts[l][e] ? 0 : idle + 1;
      if (idle >= starved_after_) starving_.emplace_back(l, e);
      if (idle == starved_after_)
        warnings.push_back(fmt::format(
            "expert {} of MoE layer {} had no token in {} steps; a larger moe.aux_coef or "
            "moe.bias_rate balances more",
            e, l, idle));
    }
  const double max_vio = measure_load(counts, 1).worst - 1;
  unbalanced_ = warn_max_vio_ > 0 && max_vio > warn_max_vio_ ? unbalanced_ + 1 : 0;
  if (unbalanced_ == starved_after_)
    warnings.push_back(fmt::format(
        "MaxVio {:.2f} has been above metrics.warn_max_vio={} for {} steps; a larger moe.aux_coef "
        "or moe.bias_rate balances more",
        max_vio, warn_max_vio_, unbalanced_));
  return warnings;
}

}  // namespace maniple

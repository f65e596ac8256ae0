// What the trainer publishes about one committed step.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace maniple {

struct StepReport {
  int64_t step = 0;      // counts from 1
  double loss = 0;       // mean over the step's targets
  double grad_norm = 0;  // before clipping
  double lr = 0;
  int64_t tokens = 0;       // targets of this step over all slices
  double tokens_per_s = 0;  // since the report before, over all slices
  double aux_loss = 0, z_loss = 0;
  std::optional<std::string> fingerprint;  // Fingerprint::hex(), on the steps that have one
  // Load metrics, times: names not used above, in the order in which they are written.
  std::vector<std::pair<std::string, double>> extra;
  std::vector<std::pair<std::string, std::vector<double>>> lists;  // one number per MoE layer
};

}  // namespace maniple

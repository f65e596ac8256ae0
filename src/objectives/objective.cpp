#include "objectives/objective.h"

#include <cmath>
#include <utility>

#include "objectives/causal_lm.h"

namespace maniple {
namespace {

class CausalLm : public Objective {
 public:
  std::vector<std::string> names() const override { return {"loss"}; }
  at::Tensor loss(const MicroBatch& batch, const at::Tensor& h_TD, Parameter& head,
                  int64_t vocab_size, double scale, Communicator& tp) override {
    CrossEntropySums sums;
    at::Tensor loss =
        cross_entropy(h_TD, head, vocab_size, batch.target.view({-1}), scale, tp, sums);
    add(sums.num_targets, {sums.loss});
    return loss;
  }
};

}  // namespace

bool ObjectiveSums::make_finite() {
  bool finite = true;
  for (double& value : values)
    if (!std::isfinite(value)) {
      finite = false;
      value = 0;
    }
  return finite;
}

void Objective::begin_attempt(int64_t) { sums_ = {}; }

ObjectiveSums Objective::take_sums() {
  ObjectiveSums taken = std::exchange(sums_, {});
  taken.values.resize(names().size());
  return taken;
}

void Objective::add(int64_t num_targets, const std::vector<double>& values) {
  sums_.num_targets += num_targets;
  sums_.values.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) sums_.values[i] += values[i];
}

std::unique_ptr<Objective> make_causal_lm() { return std::make_unique<CausalLm>(); }

}  // namespace maniple

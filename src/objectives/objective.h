// What a step minimises. One object a rank, made by the trainer (trainer/make_objective.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "data/row_source.h"
#include "parallel/parameters.h"

namespace maniple {

// The rows of one forward, as rows and as int64 tensors [B, S] on the device.
struct MicroBatch {
  std::vector<Row> rows;
  at::Tensor ids, target, position, document;
};

struct ObjectiveSums {
  int64_t num_targets = 0;
  std::vector<double> values;  // unscaled sums over targets, fp64: those of Objective::names()
  bool make_finite();          // puts 0 for what is not finite; false if there was any
};

class Objective {
 public:
  virtual ~Objective() = default;
  // What `sums` holds: first "loss", the minimised one, then other metrics, each per target.
  virtual std::vector<std::string> names() const = 0;
  // Before the first loss() of an attempt of step `step` (from 1); drops the sums of another.
  virtual void begin_attempt(int64_t step);
  // h_TD: the student's final norm on the micro-batch (T = B S), equal on all tp ranks; head: [V/tp,
  // D] of `vocab_size` rows. Returns scale * the sum of the loss over the targets, differentiable in
  // h; the head's gradient is added in forward (so backward follows with weight 1). Adds to `sums`.
  // Collective over tp, and over the slice where a teacher runs.
  virtual at::Tensor loss(const MicroBatch& batch, const at::Tensor& h_TD, Parameter& head,
                          int64_t vocab_size, double scale, Communicator& tp) = 0;

  ObjectiveSums take_sums();  // those since the last call

 protected:
  void add(int64_t num_targets, const std::vector<double>& values);

 private:
  ObjectiveSums sums_;
};

std::unique_ptr<Objective> make_causal_lm();

}  // namespace maniple

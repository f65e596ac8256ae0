// The objective of distillation: targets from the rows (Row::teacher, out of a store) or from a
// teacher that runs on the same micro-batch.
#pragma once

#include <functional>

#include "core/config.h"
#include "objectives/objective.h"

namespace maniple {

// A model that runs inside the step, without gradient, on the same mesh as the student.
class Teacher {
 public:
  virtual ~Teacher() = default;
  // [T, D of the teacher]: the output of its final norm. Collective over the slice.
  virtual at::Tensor hidden(const MicroBatch& batch) = 0;
  virtual const Parameter& head() = 0;  // [V/tp, D of the teacher], of the student's vocabulary
};

// Weight of the cross-entropy at a step (from 1) that runs at rate `lr`.
double ce_weight(const DistillConfig& config, int64_t step, int64_t num_steps, double lr,
                 double peak_lr);

// teacher: null where the rows carry targets. alpha: the weight of the cross-entropy, of the step
// (from 1). Names: loss,
// ce_loss, kd_loss (-sum t ln p), kl_loss (kd_loss less the next), teacher_entropy (of the target t),
// distill_alpha.
std::unique_ptr<Objective> make_distillation(const DistillConfig& config,
                                             const std::function<double(int64_t)>& alpha,
                                             std::unique_ptr<Teacher> teacher);

}  // namespace maniple

// The loss of distillation, vocabulary-parallel and in token chunks: whole logits never exist. Spec:
// model.md 3.1 to 3.4, 3.7. Shape letters: T tokens, D model, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include "objectives/distill_targets.h"
#include "parallel/layers.h"

namespace maniple {

// What the student learns: `sparse`, or with `head` the teacher's whole distribution.
struct DistillTargets {
  SparseTargets sparse;          // on the student's device, in the accumulation type but for id
  at::Tensor h_TD;               // [T, D of the teacher]: output of its final norm
  const Parameter* head = nullptr;  // [V/tp, D of the teacher], the student's vocabulary
};

// Sums over targets, unscaled, fp64.
struct DistillSums {
  double loss = 0;     // alpha ce + (1 - alpha) kd
  double ce = 0;       // cross-entropy of the labels
  double kd = 0;       // -sum t ln p, times temperature^2
  double entropy = 0;  // of t, times temperature^2: kd - entropy is the divergence
  int64_t num_targets = 0;
};

// alpha CE + (1 - alpha) temperature^2 KD at temperature, over tokens with target_T (int64) >= 0.
// As cross_entropy (objectives/causal_lm.h): returns scale * the sum, differentiable in h; the head's
// gradient is added in forward. Collective over tp.
at::Tensor distill_loss(const at::Tensor& h_TD, Parameter& head, int64_t vocab_size,
                        const at::Tensor& target_T, const DistillTargets& targets, double alpha,
                        double temperature, double scale, Communicator& tp, DistillSums& sums);

}  // namespace maniple

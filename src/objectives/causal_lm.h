// Cross-entropy of the next token, vocabulary-parallel and in token chunks: whole logits never
// exist. Shape letters: T tokens, D model, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include "parallel/layers.h"

namespace maniple {

struct CrossEntropySums {
  double loss = 0;  // sum over targets, unscaled, fp64
  int64_t num_targets = 0;
};

// h_TD: outputs of the final norm (equal on all tp ranks); head: [V/tp, D] of `vocab_size` rows;
// target_T: int64, -1 masked. Adds to `sums`; returns scale * sum of the losses, differentiable in
// h; the head's gradient is added in forward already, where the logits of a chunk exist (so call it
// with gradients enabled only when backward follows with weight 1). Collective over tp.
at::Tensor cross_entropy(const at::Tensor& h_TD, Parameter& head, int64_t vocab_size,
                         const at::Tensor& target_T, double scale, Communicator& tp,
                         CrossEntropySums& sums);

}  // namespace maniple

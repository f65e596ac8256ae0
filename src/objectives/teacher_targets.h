// What a teacher says about tokens, in the form that a store keeps: its k largest probabilities, or
// draws from them. Spec: model.md 3.6, 3.7. Shape letters: T tokens, D model, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "data/row_source.h"
#include "data/teacher_format.h"
#include "parallel/parameters.h"

namespace maniple {

// h_TD: the teacher's final norm on `rows` (T = rows x seq_len, equal on all tp ranks); head: [V/tp, D].
// Draw i of a token is keyed by (seed, sample, position, i), so it does not depend on which rows are
// together. The same result on all tp ranks. Collective over tp. Throws DataError where the teacher
// gives an id of 2^18 or more, or logits that are not finite.
std::vector<TeacherRow> teacher_targets(const at::Tensor& h_TD, const Parameter& head,
                                        int64_t vocab_size, const std::vector<Row>& rows,
                                        const TargetSpec& spec, Communicator& tp);

}  // namespace maniple

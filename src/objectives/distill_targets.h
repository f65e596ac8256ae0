// From what a teacher said to what a student learns: the choices of t of spec model.md 3.2. Any t
// with total W gives L = -sum t_i ln p_i and dL/dz = W p - t. Shape letters: T tokens, K entries.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "core/config.h"
#include "data/row_source.h"
#include "data/teacher_format.h"

namespace maniple {

enum class DistillVariant {
  kSampleCounts,  // c / N, unbiased
  kSampleRenorm,  // p on the drawn ids, divided by its sum
  kImportance,    // c / N * p / q, divided by its sum or not
  kTopkRenorm,    // p on the k largest, divided by its sum (biased)
  kTopkRaw,       // p on the k largest: W < 1
  kTopkGhost,     // the same and one class for the rest
  kTopkToLabel,   // the rest goes to the label
  kFull,          // all of p: a teacher inside the step only
};
DistillVariant parse_variant(const std::string& name);  // of distill.variant

// What a teacher must write for a config's variant (not for kFull).
TargetSpec target_spec(const DistillConfig& config);
// Empty, or what in a store's targets does not serve the config: "num: 50 in the store, ...".
std::string target_difference(const TargetSpec& stored, const DistillConfig& config);

// Column 0 is the token's label, whether the teacher chose it or not (then its weight is 0); other
// columns hold the rest of the support. Where nothing is: id -1, weight 0.
struct SparseTargets {
  at::Tensor id;       // int64 [T, K]
  at::Tensor weight;   // fp64 [T, K]: t; above 0 exactly on the support
  at::Tensor total;    // fp64 [T]: W
  at::Tensor rest;     // fp64 [T]: mass of the ghost class; 0 for the other variants
  at::Tensor entropy;  // fp64 [T]: -sum t ln t, the ghost class included
};
// Of rows with Row::teacher, in host memory. Masked tokens have no support and W = 0.
SparseTargets sparse_targets(const std::vector<Row>& rows, const DistillConfig& config);

}  // namespace maniple

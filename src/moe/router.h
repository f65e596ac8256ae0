// Top-k routing in fp32 (fp64), its balance losses and its counts. spec: docs/numerics.md.
// Shape letters: T tokens, E experts, K experts per token.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <limits>

#include "core/config.h"
#include "model/model_config.h"
#include "parallel/layers.h"

namespace maniple {

struct RouterSettings {
  double aux_coef = 0, z_coef = 0;  // 0 for evaluation and models without losses
  std::string aux_scope = "previous_step";
  double layer_weight = 1;  // 1, or 1 / layers for moe.aux_over_layers: mean
  std::string routing = "natural";
  double capacity_factor = 0;  // 0: dropless
  bool drop_last = false;      // beyond the capacity the last tokens, not those of the least weight
};

// What one layer adds up over the tokens of a unit; sums only, so that they merge exactly.
struct RouterSums {
  at::Tensor counts;            // int64 [E]
  double aux = 0;               // sum over tokens of E sum_i f_i p_i(t): 1 per token at balance
  double z = 0;                 // sum over tokens of logsumexp^2
  double entropy = 0;           // of the token's distribution
  double top1 = 0;              // probability of the token's most likely expert
  double score = 0;             // sum_i s_i: 1 per token for softmax; sigmoid scores may collapse
  double logit_max = -std::numeric_limits<double>::infinity();  // a maximum, not a sum
  at::Tensor probability;       // fp64 [E], sum over tokens of p(t)
  int64_t num_tokens = 0;
  int64_t num_dropped = 0;  // of the num_tokens K slots; counts has them too
  // The sums over tokens, for those who treat them alike.
  std::array<double*, 5> numbers() { return {&aux, &z, &entropy, &top1, &score}; }
  void clear();
  bool make_finite();  // false: something was not, and is 0 now
};

struct Routing {
  at::Tensor experts_TK;  // int64, best first; E: the slot was dropped
  at::Tensor weights_TK;  // accumulation type, differentiable
  at::Tensor loss;        // sum over tokens of the weighted aux and z losses (undefined: none)
  at::Tensor logits_TE;   // detached, for inspection
};

// scores_TE with all experts at -inf but those of each token's `kept` best of `num_groups` equal
// groups. A group counts as the sum of its two best experts (at least two each); of equal groups
// the first. DeepSeek-V3's rule (arXiv 2412.19437, section 2.1.2).
at::Tensor keep_best_groups(const at::Tensor& scores_TE, int64_t num_groups, int64_t kept);

// experts_TK with E where an expert is chosen more than `capacity` times: by the slots of the least
// weight, of equal ones the last, or by the last ones.
at::Tensor drop_beyond(int64_t capacity, bool drop_last, const at::Tensor& experts_TK,
                       const at::Tensor& weights_TK, int64_t num_experts);

class Router {
 public:
  Router(const ModelConfig& model, int64_t layer, const std::string& prefix, ParameterStore& store,
         const RouterSettings& settings);

  // x_TD: this rank's tokens; row_of_T (int64) tells the row (sequence) of each and num_rows their
  // number, for the scope `sequence`. Collective over the slice in scope `round`, over tp in scope
  // `sequence`. count: add to `sums` (not in recomputation, which sees the same tokens again).
  Routing forward(const at::Tensor& x_TD, const at::Tensor& row_of_T, int64_t num_rows,
                  bool count = true);

  // State outside the gradient: the selection bias b [E] (fp32) and f [E] of the last committed
  // step, both kept by the trainer's checkpoint.
  at::Tensor bias, previous_f;
  void reset();  // as before the first step
  RouterSums sums;       // added to by counting forwards while `training`
  bool training = true;  // losses and sums on
  int64_t layer() const { return layer_; }

 private:
  at::Tensor select(const at::Tensor& scores_TE) const;
  at::Tensor balance_f(const at::Tensor& scores_TE, const at::Tensor& experts_TK,
                       const at::Tensor& row_of_T, int64_t num_rows) const;

  const ModelConfig& model_;
  const int64_t layer_;
  const RouterSettings& settings_;
  ProcessMesh& mesh_;
  Parameter* weight_;
};

}  // namespace maniple

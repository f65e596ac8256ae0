// One training step, phases 1 to 9 (docs/architecture.md). Repeatable: an attempt that fails on any
// rank is voted down and redone by all with the same data and randomness, hence the same bits.
//
// run() does all of it in a job of fixed slices. In an elastic job the vote is the membership's
// (elastic/membership.h), which calls for the parts: compute, exchange, then settle and apply.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "core/config.h"
#include "data/prefetcher.h"
#include "data/row_source.h"
#include "model/decoder.h"
#include "moe/moe_layer.h"
#include "objectives/objective.h"
#include "optim/sharded_adamw.h"
#include "trainer/phase_clock.h"

namespace maniple {

// The model of one rank with everything that trains it.
struct TrainedModel {
  // Without `allocate` only to be asked about its parameters.
  TrainedModel(const Config& config, const ModelConfig& model, ProcessMesh& mesh,
               bool allocate = true);

  const ModelConfig model;
  ParameterStore store;
  MoeContext moe;
  std::vector<MoeLayer*> moe_layers;  // in layer order
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<ShardedAdamw> optimizer;
};

struct StepOutcome {
  double loss = 0;  // of the objective, per target
  std::vector<std::pair<std::string, double>> objective;  // its other sums, per target
  double grad_norm = 0, expert_grad_norm = 0, router_grad_norm = 0;
  double clip = 1;  // coefficient of the global-norm clipping
  int64_t num_targets = 0, num_tokens = 0;
  double aux_loss = 0;  // raw: 1 per layer at balance, mean over layers
  double z_loss = 0;    // raw, mean over layers
  std::vector<double> aux_losses, z_losses;        // raw, per MoE layer
  double weighted_aux_loss = 0, weighted_z_loss = 0;  // per target, as added to the loss
  double router_entropy = 0;          // of a token's distribution, mean over tokens and layers
  double router_entropy_of_mean = 0;  // of the mean distribution, mean over layers
  double router_top1 = 0, router_score = 0;  // mean over tokens and layers
  std::vector<std::vector<int64_t>> counts;  // [MoE layers][experts], whole step, as routed
  std::vector<double> dropped;               // share of these that met a full expert, per MoE layer
  std::vector<double> hidden_rms;            // of the input of each layer and of the final norm
  bool skipped = false;                      // non-finite: nothing was updated
  int64_t attempts = 1;
  PhaseSeconds seconds{};  // of this rank, in the attempt that was committed
};

// What an attempt found out, as integers that are summed over all ranks of all slices: targets and
// losses, router sums and counts, flags, squared norms.
using StepSums = std::vector<int64_t>;

// Numbers among the sums that add up to zero over the job when all is well, and practically never
// otherwise: the same hash with opposite signs.
enum class Check {
  kCanary,  // gradient of a unit, computed by two slices
  kBlocks,  // reduced gradient of a block, at its holders
  kSums,    // what the ranks added up, and what the owners of the blocks have of it
  kState,   // parameters at all slices; master, m and v of a block at its holders
  kRows,    // rows that the ranks of a slice sent each other for the experts, and those that arrived
};
constexpr int kNumChecks = 5;
const char* to_string(Check check);

// A unit of the step that a second slice computes too, only to compare gradients.
struct Canary {
  int64_t unit = 0;
  int64_t second = 0;  // slice
};
// Steps between canaries for sdc.canary_every; 0: none.
int64_t canary_interval(int64_t canary_every, int64_t units, int64_t slices);
// The canary of a step, if it has one: every `every` steps (0: never), and in each step where some
// slices have a unit less than the others, for one of these. Units and pairs rotate.
std::optional<Canary> canary_of(int64_t step, int64_t units, int64_t slices, int64_t every);
// The canary that `second` computes when it has one in each step: the units of the others, in turn.
Canary canary_by(int64_t second, int64_t step, int64_t units, int64_t slices);

// A unit whose last hidden states are multiplied by a factor, whoever computes it (faults.spike).
struct Spike {
  int64_t step = 0, unit = 0;
  double factor = 1;
};
// "step:unit:factor", a list with commas. Throws ConfigError.
std::vector<Spike> parse_spikes(const std::string& text);

// Where a test may make an attempt fail on one rank.
struct FaultPoint {
  int64_t step, attempt, unit;
  enum Phase { kBackward, kExchange } phase;
};

class TrainStep {
 public:
  // Takes the hook MoeContext::on_phase of `model`, and gives it back.
  TrainStep(const Config& config, TrainedModel& model, ProcessMesh& mesh, const RowSource& rows,
            std::unique_ptr<Objective> objective = make_causal_lm());
  ~TrainStep() { model_.moe.on_phase = {}; }
  TrainStep(const TrainStep&) = delete;
  TrainStep& operator=(const TrainStep&) = delete;

  // Runs what needs other slices; says, alike on all ranks of a slice, whether it succeeded.
  using Between = std::function<bool(const std::function<void()>& communicate)>;

  // Collective over the world. Throws CommError after max_attempts failed ones.
  StepOutcome run(int64_t step, double lr);

  // The parts of run(). Phases 1 to 4 and the reduction inside the slice; collective over it.
  // `keep_on` is asked before each unit and must answer alike on all ranks of the slice; after a no
  // the attempt has failed.
  StepSums compute(int64_t step, int64_t attempt, const std::function<bool()>& keep_on = {},
                   const std::optional<Canary>& canary = {});
  // Phases 5 and 6: the sums of the whole job. Collective over all slices. False when `between`
  // failed: the sums are worthless then.
  bool exchange(StepSums& sums, const Between& between);
  size_t num_sums() const;
  static bool failed(const StepSums& sums);
  static bool finite(const StepSums& sums);
  static void add_check(StepSums& sums, Check check, uint64_t hash);  // between compute and exchange
  static bool broken(const StepSums& sums, Check check);  // after exchange
  // Of what this rank computed, gradients and sums, on its way to the other slices: between compute
  // and the next one. `sums` as compute() returned them.
  Fingerprint computed(const StepSums& sums) const;
  // The outcome, a function of the job's sums alone.
  StepOutcome settle(const StepSums& sums) const;
  // Phase 8, nothing for a skipped step; publishing is ShardedAdamw's.
  void apply(const StepOutcome& outcome, double lr);
  // Who computes which units follows from mesh.across(); to be called when that changes. With a
  // rotation this slice computes the units of the slice that comes so many places after it.
  void assign(int64_t rotation = 0);
  int64_t num_units() const { return num_units_; }
  // One unit of any step by itself, with the current parameters. `look` is called while the gradient
  // buffers hold its gradient; afterwards nothing is left of it. Collective over the slice.
  struct UnitResult {
    at::Tensor sums;  // int64: targets, loss in quanta; of this rank
    uint64_t gradient_hash = 0;
  };
  UnitResult unit(int64_t step, int64_t unit, const std::function<void()>& look = {});
  double loss_of(const UnitResult& result) const;  // per target

  // Mean cross-entropy over validation rows [0, num_rows); the same bits whatever the number of slices.
  // Collective over the world.
  double evaluate(int64_t num_rows);
  // The same for an elastic job; false when `between` failed.
  bool evaluate(int64_t num_rows, double& loss, const Between& between);

  // What the report adds from this rank about the last step.
  struct RankNumbers {
    double logit_max;     // of the router, over this rank's tokens
    double unit_max_vio;  // (max - mean) / mean of the worst unit and layer of this slice
  };
  RankNumbers rank_numbers();  // collective over the slice
  PhaseClock& clock() { return clock_; }  // of this rank; started anew by compute()

  int64_t applied_steps = 0;  // committed and not skipped
  // Called where a test may damage the gradients: of a unit, summed over the slice, reduced.
  enum class GradientPlace { kUnit, kSum, kReduced };
  std::function<void(GradientPlace)> on_gradients;
  std::function<bool(const FaultPoint&)> inject_fault;  // true: this rank's attempt fails here
  static constexpr int64_t kMaxAttempts = 4;

 private:
  MicroBatch to_tensors(std::vector<Row> rows) const;
  // Rows of this rank's micro-batch number k, counted over the units and rounds of all steps.
  std::vector<Row> micro_batch_rows(uint64_t k) const;
  std::vector<Row> micro_batch_rows(int64_t step, int64_t unit, int64_t round) const;
  // early: begin to reduce gradients that are complete while backward goes on.
  void backward_unit(int64_t step, int64_t unit, bool early = false);
  void add_unit_sums(int64_t unit, const ObjectiveSums& objective, StepSums& sums);
  // Where the objective's sums but for the loss, and the squares of hidden states, are in the step's.
  size_t objective_begin() const;
  size_t squares_begin() const;

  const Config& config_;
  TrainedModel& model_;
  ProcessMesh& mesh_;
  const RowSource& rows_;
  const int64_t num_units_;
  int64_t first_unit_ = 0, units_here_ = 0, rounds_ = 1;  // of this slice; rounds of a unit
  std::unique_ptr<Prefetcher> batches_;            // from the first step that runs
  const std::vector<Spike> spikes_;
  double scale_;  // power of two near 1 / (rows * seq_len)
  const std::unique_ptr<Objective> objective_;
  PhaseClock clock_;
  at::Tensor unit_counts_;  // int64 [units of this slice, MoE layers, experts], of this rank
  double logit_max_ = 0;
  std::vector<double> hidden_squares_;  // of the unit under way, as Decoder::hidden_squares
};

// Units R of a step: batch.units, or the largest divisor of rows up to 16 that the mesh allows.
// Throws ConfigError when rows, units, slices and micro-batch do not fit.
int64_t num_units(const BatchConfig& batch, const MeshShape& mesh);

}  // namespace maniple

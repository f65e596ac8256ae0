// Gradients to new parameters, sharded: each unit's gradient is rounded once and added to integer
// sums (phase 4 of the step), the sums are reduced to the owners of their blocks (5), measured (6),
// applied by AdamW on the owner's fp32 (fp64) master, m and v (8), and the new values gathered (9).
// State per rank is 1 / (ranks of the gradient group) of the parameters' own.
#pragma once

#include <optional>

#include "checkpoint/checkpoint.h"
#include "core/fingerprint.h"
#include "kernels/adamw.h"
#include "kernels/exact_sum.h"
#include "parallel/parameters.h"
#include "quant/fake_quantizer.h"

namespace maniple {

class ShardedAdamw {
 public:
  // `store` is allocated. num_units: R. total_parameters fixes the quantum of the sums.
  ShardedAdamw(ParameterStore& store, const OptimConfig& optim, int64_t num_units,
               int64_t total_parameters);

  // Starting point: calls fill(parameter, first, n, out) for each owned run of local elements,
  // writes masters, zeroes the moments. Publish afterwards.
  using Fill = std::function<void(const Parameter&, int64_t first, int64_t n, double* out)>;
  void initialize(const Fill& fill);

  void refresh_values();  // working copies of owned blocks from the masters (after loading)

  void begin_attempt();  // clears sums and gradients
  bool fold_unit();      // gradients of one unit -> sums; false: an addend is out of bounds
  void exchange();       // collective over the gradient groups
  // This rank's share of the squared norm of the scaled gradient; each element is counted by exactly
  // one rank of the world. `finite` is cleared when a value is not finite.
  struct Norms {
    FixedPoint128 total = 0, experts = 0, routers = 0;
  };
  Norms squared_norms(bool& finite) const;
  // factor: scaled gradient -> mean gradient; clip: coefficient of the global-norm clipping.
  void update(double lr, double factor, double clip, int64_t applied_steps);
  // Collective over the gradient groups. Afterwards the working copies are those of the masters, on
  // the grid where there is one.
  void publish();
  // From the next publish on.
  void quantize_with(const FakeQuantizer& quantizer) { quantizer_ = quantizer; }
  const std::optional<FakeQuantizer>& quantizer() const { return quantizer_; }

  Fingerprint fingerprint() const;  // this rank's share; shares of all ranks combine
  std::vector<TensorSlice> state_slices(bool with_moments = true);  // views: memory of the device
  int64_t state_bytes() const;
  int64_t exchange_bytes() const;  // sent per step and rank, about

 private:
  struct Shard {
    GradGroup group = GradGroup::kSharded;
    bool exact = true;    // false: one addend by configuration, nothing is rounded
    bool counted = true;  // this rank's copy is the one that norms, fingerprints, checkpoints use
    int bound_bits = 62;
    std::vector<int64_t> counts;  // elements per rank of the group
    int64_t begin = 0, size = 0;  // owned, in the flat space
    at::Tensor sum, reduced;      // int64: flat; owned
    at::Tensor master, m, v;      // owned
  };
  struct Run {  // owned part of a parameter: local elements [first, first + n), at `at` of the shard
    Parameter* parameter;
    int64_t first, n, at;
  };
  std::vector<Run> runs(const Shard& shard) const;
  // The gradient of owned elements [at, at + n) times factor.
  at::Tensor decode(const Shard& shard, int64_t at, int64_t n, double factor) const;
  at::Tensor decode_unmasked(const Shard& shard, int64_t at, int64_t n, double factor) const;

  ParameterStore& store_;
  const OptimConfig optim_;
  const int q_;
  std::vector<Shard> shards_;
  std::optional<FakeQuantizer> quantizer_;
};

}  // namespace maniple

// Quantisation-aware training: which weights lie on the grid, and putting the working copies there.
//
// After every publish the working copy of a quantised weight is replaced by its nearest value on
// the grid; forward and backward compute with it, and its gradient goes to the master unchanged
// (identity estimator) or not at all where the rounded value was out of range (clipped). Each rank
// quantises what it holds from what the publish gave it, so every layout gets the same bits.
#pragma once

#include "model/model_config.h"
#include "parallel/parameters.h"
#include "quant/grid.h"

namespace maniple {

// Whether a parameter lies on the grid: the projections of attention and feed-forward, expert by
// expert (spec/model.md 4.5). Embedding, head, norms, biases, router and shared-expert gate never
// do.
bool is_quantizable(const std::string& parameter);
// "" if the grid takes this quantisable parameter (global shape), else why not: its rows are no
// whole groups. Of the int4 groups an expert takes all three matrices or none (spec 4.6).
std::string why_not_on_grid(const Grid& grid, const std::string& parameter,
                            const std::vector<int64_t>& shape);
// Both of the above.
bool on_grid(const Grid& grid, const std::string& parameter, const std::vector<int64_t>& shape);

// Throws ConfigError where the grid takes nothing of the model, or an int4 group not its experts
// (readers of compressed-tensors expect packed ones).
void check_grid_on_model(const Grid& grid, const std::string& format, const ModelConfig& model);
// The same, and where tensor parallelism would divide a group (a row) among ranks.
void check_grid_on_mesh(const Grid& grid, const std::string& format, const ModelConfig& model,
                        const MeshShape& mesh);

class FakeQuantizer {
 public:
  FakeQuantizer(const Grid& grid, bool clipped) : grid_(grid), clipped_(clipped) {}
  // Replaces the values of the quantised parameters, which must be working copies of the masters;
  // with the clipped estimator sets ParameterStore::Group::grad_mask too.
  void apply(ParameterStore& store) const;
  // One line for each reason why quantisable parameters are left off the grid.
  std::vector<std::string> left_off(const ParameterStore& store) const;

 private:
  Grid grid_;
  bool clipped_;
};

}  // namespace maniple

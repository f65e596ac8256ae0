// A small model, its trainer, and runs of a few steps on ranks that are threads.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <mutex>

#include "test_device.h"
#include "trainer/run_state.h"

namespace maniple {

inline Config tiny_config() {
  Config c;
  c.run.seed = 7;
  c.model.preset = "house";
  c.model.overrides = {{"vocab_size", 257},           {"hidden_size", 72},
                       {"num_hidden_layers", 2},      {"num_attention_heads", 4},
                       {"num_key_value_heads", 4},    {"head_dim", 16},
                       {"num_experts", 8},            {"num_experts_per_tok", 2},
                       {"moe_intermediate_size", 24}, {"shared_expert_intermediate_size", 32},
                       {"sliding_window", 16},        {"sliding_window_pattern", 2}};
  c.batch = {.rows = 8, .units = 4, .micro_batch_rows = 1, .seq_len = 24};
  c.data.sources = {{MANIPLE_TEST_DATA "/tinyshakespeare-200k.txt", "text", 1}};
  c.optim.lr = 3e-3;
  c.optim.block_elements = 1024;
  return c;
}

// Layouts with their number of ranks.
struct MeshLayout {
  int64_t slices, tp, ep, etp;
  int ranks;
};
inline Config with_layout(Config c, const MeshLayout& l) {
  c.parallel = {.slices = l.slices, .tp = l.tp, .ep = l.ep, .etp = l.etp};
  return c;
}
inline std::string name_of(const MeshLayout& l) {
  return fmt::format("slices {} tp {} ep {} etp {}", l.slices, l.tp, l.ep, l.etp);
}

// One rank with all that a step needs.
struct Trainer {
  Trainer(const Config& c, std::unique_ptr<Communicator> world)
      : config(c),
        shape(make_mesh_shape(c.parallel, world->size())),
        mesh(shape, std::move(world), test_device()),
        rows(open_row_source(c.data, c.batch.seq_len, 257, c.run.seed)),
        model(config, resolve_model(config.model), mesh),
        step(config, model, mesh, *rows) {
    set_random_weights(model, config.run.seed);
    model.optimizer->publish();
  }
  const Config config;
  const MeshShape shape;
  ProcessMesh mesh;
  const std::unique_ptr<RowSource> rows;
  TrainedModel model;
  TrainStep step;
};

struct TrainedSteps {
  std::vector<StepOutcome> steps;
  std::vector<Fingerprint> states;  // after each step, of all ranks
};

using Wrap = std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)>;
using BeforeStep = std::function<void(Trainer&, int64_t step)>;

// Steps on num_ranks ranks; every rank must see the same losses and attempts. `prepare` is called
// before each step; `wrap` puts something around each rank's communicator.
inline TrainedSteps train_steps(const Config& config, int num_ranks, const BeforeStep& prepare = {},
                           int64_t num_steps = 3, const Wrap& wrap = {}) {
  TrainedSteps out;
  out.states.resize(num_steps);
  std::mutex mutex;
  run_local_ranks(num_ranks, [&](std::unique_ptr<Communicator> world) {
    Trainer t(config, wrap ? wrap(std::move(world)) : std::move(world));
    for (int64_t s = 1; s <= num_steps; ++s) {
      if (prepare) prepare(t, s);
      const StepOutcome o = t.step.run(s, config.optim.lr);
      const std::lock_guard lock(mutex);
      out.states[s - 1].combine(t.model.optimizer->fingerprint());
      if (static_cast<int64_t>(out.steps.size()) < s) out.steps.push_back(o);
      EXPECT_EQ(o.attempts, out.steps[s - 1].attempts);
      EXPECT_EQ(o.loss, out.steps[s - 1].loss);
    }
    EXPECT_EQ(t.step.applied_steps, num_steps);
  });
  return out;
}

}  // namespace maniple

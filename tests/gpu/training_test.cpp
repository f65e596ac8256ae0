// Training on one GPU: fifty steps, layouts, resume, and inference from what was trained. Ranks are
// threads that share the GPU, so their messages are staged through host memory.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tiny_trainer.h"
#include "trainer/inference.h"
#include "trainer/trainer.h"

namespace maniple {
namespace {

constexpr int64_t kSteps = 50;

class GpuTraining : public testing::TestWithParam<std::string> {
 protected:
  Config config() const {
    Config c = tiny_config();
    c.train.precision = GetParam();
    return c;
  }
};

void expect_equal(const TrainedSteps& a, const TrainedSteps& b) {
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (size_t s = 0; s < a.steps.size(); ++s) {
    EXPECT_EQ(a.steps[s].loss, b.steps[s].loss) << "step " << s + 1;
    EXPECT_EQ(a.steps[s].grad_norm, b.steps[s].grad_norm) << "step " << s + 1;
    EXPECT_EQ(a.steps[s].counts, b.steps[s].counts) << "step " << s + 1;
    EXPECT_TRUE(a.states[s] == b.states[s]) << "step " << s + 1;
  }
}

TEST_P(GpuTraining, LossFallsAndTwoSlicesGiveTheBitsOfOne) {
  Config c = config();
  const TrainedSteps one = train_steps(c, 1, {}, kSteps);
  for (const StepOutcome& o : one.steps) ASSERT_FALSE(o.skipped);
  EXPECT_LT(one.steps.back().loss, one.steps.front().loss - 1);
  c.parallel.slices = 2;
  expect_equal(one, train_steps(c, 2, {}, kSteps));
}

TEST_P(GpuTraining, ARepeatedRunGivesEqualBits) {
  Config c = config();
  expect_equal(train_steps(c, 1), train_steps(c, 1));
}

INSTANTIATE_TEST_SUITE_P(Precisions, GpuTraining, testing::Values("fp64", "fp32", "bf16"));

// tp, ep and etp communicate in forward and backward; 1e-9 is the tolerance of docs/numerics.md for
// other layouts in fp64.
TEST(GpuLayouts, OtherLayoutsGiveTheLossesOfOneRank) {
  Config c = tiny_config();
  c.train.precision = "fp64";
  const TrainedSteps one = train_steps(c, 1);
  const auto expect_near = [&](int num_ranks) {
    const TrainedSteps other = train_steps(c, num_ranks);
    for (size_t s = 0; s < 3; ++s) EXPECT_NEAR(one.steps[s].loss, other.steps[s].loss, 1e-9);
  };
  c.parallel = {.slices = 1, .tp = 2, .ep = 2, .etp = 1};
  expect_near(2);
  c.parallel = {.slices = 1, .tp = 2, .ep = 1, .etp = 2};
  expect_near(2);
  c.parallel = {.slices = 2, .tp = 1, .ep = 2, .etp = 1};
  expect_near(4);
}

// The first steps of a run on the GPU are those of the CPU up to round-off.
TEST(GpuLayouts, LossesAreThoseOfTheCpu) {
  Config c = tiny_config();
  c.train.precision = "fp64";
  const TrainedSteps gpu = train_steps(c, 1);
  const auto rows = open_row_source(c.data, c.batch.seq_len, 257, c.run.seed);
  ProcessMesh mesh(MeshShape{}, make_single_communicator());
  TrainedModel model(c, resolve_model(c.model), mesh);
  set_random_weights(model, c.run.seed);
  TrainStep step(c, model, mesh, *rows);
  for (int64_t s = 1; s <= 3; ++s)
    EXPECT_NEAR(step.run(s, c.optim.lr).loss, gpu.steps[s - 1].loss, 1e-9);
}

// `maniple train`, with evaluation, checkpoints and a resume, then inference on both devices.
TEST(GpuRun, ResumesWithEqualBitsAndInfersAsTheCpuDoes) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("maniple-gpu-test-" + std::to_string(getpid()));
  Config c = tiny_config();
  c.run.device = "cuda";
  c.train.precision = "fp64";
  c.data.validation = 0.05;
  c.optim.schedule = "constant";
  c.eval = {.every = 10, .rows = 4};
  c.checkpoint.every = 10;
  c.metrics.fingerprint_every = 20;
  c.train.steps = 20;
  const auto run = [&](const std::string& name, int64_t steps) {
    c.run.dir = (folder / name).string();
    c.train.steps = steps;
    EXPECT_EQ(train(c, make_single_communicator()), ExitCode::kOk);
  };
  const auto last_fingerprint = [&](const std::string& name) {
    std::ifstream file(folder / name / "metrics.jsonl");
    std::string fingerprint;
    for (std::string line; std::getline(file, line);) {
      const auto record = nlohmann::json::parse(line);
      if (record.value("step", 0) == 20 && record.contains("state_fingerprint"))
        fingerprint = record["state_fingerprint"];
    }
    return fingerprint;
  };
  run("straight", 20);
  run("resumed", 10);
  run("resumed", 20);
  EXPECT_EQ(last_fingerprint("straight").size(), 32u);
  EXPECT_EQ(last_fingerprint("straight"), last_fingerprint("resumed"));

  const at::Tensor ids = at::arange(24, at::TensorOptions(at::kLong)).unsqueeze(0);
  InferenceModel on_gpu(folder / "straight", "fp64", "cuda"), on_cpu(folder / "straight", "fp64", "cpu");
  EXPECT_LT((on_gpu.logits(ids).cpu() - on_cpu.logits(ids)).abs().max().item<double>(), 1e-10);
  std::vector<int64_t> gpu_tokens, cpu_tokens;
  on_gpu.sample("The ", 8, 0.7, 1, 1, [&](int64_t token) { gpu_tokens.push_back(token); });
  on_cpu.sample("The ", 8, 0.7, 1, 1, [&](int64_t token) { cpu_tokens.push_back(token); });
  EXPECT_EQ(gpu_tokens, cpu_tokens);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace maniple

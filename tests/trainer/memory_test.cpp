// What saves memory without changing the training: recomputed layers (same bits) and experts in
// chunks (round-off); and the reference dispatcher against the one that is used.
#include <cmath>

#include "moe/chunked_experts.h"
#include "tiny_trainer.h"

namespace maniple {
namespace {

void expect_same_bits(const TrainedSteps& a, const TrainedSteps& b) {
  for (size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(a.steps[s].loss, b.steps[s].loss);
    EXPECT_EQ(a.steps[s].grad_norm, b.steps[s].grad_norm);
    EXPECT_EQ(a.steps[s].aux_loss, b.steps[s].aux_loss);
    EXPECT_EQ(a.steps[s].z_loss, b.steps[s].z_loss);
    EXPECT_EQ(a.steps[s].router_entropy, b.steps[s].router_entropy);
    EXPECT_EQ(a.steps[s].counts, b.steps[s].counts);
    EXPECT_TRUE(a.states[s] == b.states[s]) << "step " << s + 1;
  }
  EXPECT_FALSE(a.states[0] == a.states[2]);
}

// Losses to `loss`, norms to `norm` relative; counts equal.
void expect_near(const TrainedSteps& a, const TrainedSteps& b, double loss, double norm) {
  for (size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(a.steps[s].counts, b.steps[s].counts);
    EXPECT_NEAR(a.steps[s].loss, b.steps[s].loss, loss);
    EXPECT_NEAR(a.steps[s].aux_loss, b.steps[s].aux_loss, loss);
    EXPECT_NEAR(a.steps[s].grad_norm / b.steps[s].grad_norm, 1, norm);
    EXPECT_NEAR(a.steps[s].expert_grad_norm / b.steps[s].expert_grad_norm, 1, norm);
  }
}

TEST(Recompute, LossesAndStateKeepTheirBits) {
  for (const std::string precision : {"fp32", "bf16"})
    for (const MeshLayout& layout : {MeshLayout{1, 1, 1, 1, 1}, MeshLayout{1, 1, 2, 1, 2}, MeshLayout{1, 2, 1, 1, 2},
                                 MeshLayout{1, 2, 2, 2, 4}}) {
      SCOPED_TRACE(precision + " " + name_of(layout));
      Config c = with_layout(tiny_config(), layout);
      c.train.precision = precision;
      const TrainedSteps kept = train_steps(c, layout.ranks);
      c.train.recompute = true;
      expect_same_bits(kept, train_steps(c, layout.ranks));
    }
}

// The scopes whose router communicates, in the recomputation too; several rounds a unit.
TEST(Recompute, ScopesThatCommunicate) {
  for (const std::string scope : {"round", "sequence"}) {
    SCOPED_TRACE(scope);
    Config c = with_layout(tiny_config(), {1, 2, 2, 1, 2});
    c.batch.units = 2;
    c.moe.aux_scope = scope;
    c.moe.aux_coef = 0.1;
    const TrainedSteps kept = train_steps(c, 2);
    c.train.recompute = true;
    expect_same_bits(kept, train_steps(c, 2));
  }
}

TEST(Recompute, FamiliesWithDenseLayersAndBiases) {
  Config c = tiny_config();
  c.model.preset = "qwen2_moe";
  c.model.overrides = {{"vocab_size", 257}, {"mlp_only_layers", {0}}};
  const TrainedSteps kept = train_steps(c, 1);
  c.train.recompute = true;
  expect_same_bits(kept, train_steps(c, 1));
}

TEST(AllGather, AgreesWithAllToAll) {
  for (const MeshLayout& layout :
       {MeshLayout{1, 1, 2, 1, 2}, MeshLayout{1, 2, 2, 2, 4}, MeshLayout{1, 1, 1, 2, 2}, MeshLayout{1, 2, 4, 1, 4}}) {
    SCOPED_TRACE(name_of(layout));
    Config c = with_layout(tiny_config(), layout);
    c.train.precision = "fp64";
    const TrainedSteps all_to_all = train_steps(c, layout.ranks);
    c.moe.dispatcher = "all_gather";
    expect_near(all_to_all, train_steps(c, layout.ranks), 1e-9, 1e-6);
  }
}

TEST(AllGather, AllTokensToTheExpertsOfOneRank) {
  Config c = with_layout(tiny_config(), {1, 1, 2, 1, 2});
  c.train.precision = "fp64";
  c.moe.bias_rate = 0;
  const auto bias = [](Trainer& t, int64_t) {
    for (MoeLayer* layer : t.model.moe_layers) layer->router().bias.narrow(0, 0, 2).fill_(1e3);
  };
  const TrainedSteps all_to_all = train_steps(c, 2, bias);
  c.moe.dispatcher = "all_gather";
  expect_near(all_to_all, train_steps(c, 2, bias), 1e-9, 1e-6);
}

// Both dispatchers, forward and backward, leave out the same tokens.
TEST(Capacity, DispatchersAndLayoutsAgree) {
  for (const std::string policy : {"probability", "position"}) {
    SCOPED_TRACE(policy);
    Config c = tiny_config();
    c.train.precision = "fp64";
    c.moe.bias_rate = 0;
    c.moe.capacity_factor = 0.75;
    c.moe.drop_policy = policy;
    const TrainedSteps one = train_steps(c, 1);
    for (const double share : one.steps[0].dropped) {
      EXPECT_GT(share, 0.24);
      EXPECT_LT(share, 0.9);
    }
    c.train.recompute = true;
    expect_same_bits(one, train_steps(c, 1));
    for (const MeshLayout& layout : {MeshLayout{1, 1, 2, 1, 2}, MeshLayout{2, 1, 1, 1, 2}, MeshLayout{1, 1, 1, 2, 2}}) {
      SCOPED_TRACE(name_of(layout));
      const Config there = with_layout(c, layout);
      const TrainedSteps all_to_all = train_steps(there, layout.ranks);
      expect_near(one, all_to_all, 1e-9, 1e-6);
      EXPECT_EQ(one.steps[0].dropped, all_to_all.steps[0].dropped);
      Config reference = there;
      reference.moe.dispatcher = "all_gather";
      expect_near(all_to_all, train_steps(reference, layout.ranks), 1e-9, 1e-6);
    }
  }
}

TEST(Capacity, ThatNobodyReachesChangesNoBit) {
  Config c = tiny_config();
  const TrainedSteps dropless = train_steps(c, 1);
  EXPECT_EQ(dropless.steps[0].dropped, std::vector<double>(2, 0.0));
  c.moe.capacity_factor = 8.0 / 2;  // all tokens fit in one expert
  expect_same_bits(dropless, train_steps(c, 1));
  c.moe.capacity_factor = 0.01;  // one token each
  const TrainedSteps few = train_steps(c, 1);
  EXPECT_GT(few.steps[0].dropped[0], 0.8);
  EXPECT_LT(few.steps[0].dropped[0], 1);
}

TEST(MaxTokens, ChunksCutTheRowsInOrder) {
  using Counts = std::vector<int64_t>;
  EXPECT_EQ(split_counts({3, 0, 4}, 4), (std::vector<Counts>{{3, 0, 1}, {0, 0, 3}}));
  EXPECT_EQ(split_counts({5}, 2), (std::vector<Counts>{{2}, {2}, {1}}));
  EXPECT_EQ(split_counts({0, 0}, 2), std::vector<Counts>{});
}

TEST(MaxTokens, ChunkedExpertsAgree) {
  for (const std::string dispatcher : {"all_to_all", "all_gather"})
    for (const bool recompute : {false, true}) {
      SCOPED_TRACE(fmt::format("{} recompute {}", dispatcher, recompute));
      Config c = with_layout(tiny_config(), {1, 1, 2, 1, 2});
      c.train.precision = "fp64";
      const TrainedSteps whole = train_steps(c, 2);
      c.moe.dispatcher = dispatcher;
      c.moe.max_tokens = 7;
      c.train.recompute = recompute;
      expect_near(whole, train_steps(c, 2), 1e-9, 1e-6);
    }
  // A budget that is never reached changes nothing.
  Config c = tiny_config();
  const TrainedSteps whole = train_steps(c, 1);
  c.moe.max_tokens = c.batch.seq_len * 2;
  expect_same_bits(whole, train_steps(c, 1));
}

}  // namespace
}  // namespace maniple

#include "moe/router.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <set>

#include "parallel/communicator.h"

namespace maniple {
namespace {

constexpr double kClosed = -std::numeric_limits<double>::infinity();

at::Tensor scores(const std::vector<double>& values) {
  return at::tensor(values, at::TensorOptions(at::kDouble)).unsqueeze(0);
}

TEST(ExpertGroups, ThoseOfTheBestPairsStayOpen) {
  // The largest score lies in the first group, whose pair is the worst.
  const at::Tensor open =
      keep_best_groups(scores({0.9, 0.0, 0.0, 0.5, 0.5, 0.2, 0.6, 0.6, 0.1}), 3, 2);
  EXPECT_TRUE(open.equal(
      scores({kClosed, kClosed, kClosed, 0.5, 0.5, 0.2, 0.6, 0.6, 0.1})));
}

TEST(ExpertGroups, OfEqualGroupsTheFirstIsKept) {
  EXPECT_TRUE(keep_best_groups(scores({0.1, 0.2, 0.2, 0.1, 0.0, 0.3}), 3, 1)
                  .equal(scores({0.1, 0.2, kClosed, kClosed, kClosed, kClosed})));
}

TEST(ExpertGroups, NoTokensAndAllGroups) {
  EXPECT_EQ(keep_best_groups(at::empty({0, 8}), 4, 2).sizes(), at::IntArrayRef({0, 8}));
  const at::Tensor all = scores({4, 3, 2, 1});
  EXPECT_TRUE(keep_best_groups(all, 2, 2).equal(all));
}

ModelConfig grouped_model() {
  ModelConfig model;
  model.hidden_size = 24;
  model.num_experts = 16;
  model.experts_per_token = 4;
  model.expert_groups = 8;
  model.groups_per_token = 3;
  model.normalize_topk = true;
  model.routed_scale = 2.5;
  model.router_score = RouterScore::kSigmoid;
  model.router_bias = true;
  return model;
}

TEST(Router, ChoosesInsideTheGroupsByBiasedScoresAndWeighsWithoutBias) {
  const ModelConfig model = grouped_model();
  ProcessMesh mesh(MeshShape{}, make_single_communicator());
  ParameterStore store(mesh, Precision::kFp64);
  const RouterSettings settings;
  Router router(model, 0, "", store, settings);
  store.allocate(64);
  Parameter& weight = store.find("gate.weight");
  weight.value.copy_(at::sin(at::arange(weight.numel(), weight.value.options()) * 1.7)
                         .view(weight.value.sizes()));
  router.bias.copy_(at::cos(at::arange(16, router.bias.options()) * 0.9));
  const int64_t T = 40;
  const at::Tensor x = at::cos(at::arange(T * 24, weight.value.options()) * 0.31).view({T, 24});
  const Routing routing = router.forward(x, at::zeros({T}, at::TensorOptions(at::kLong)), 1);

  const at::Tensor s = at::sigmoid(at::mm(x, weight.value.t()));
  const at::Tensor biased = s + router.bias.to(at::kDouble);
  std::set<int64_t> used;
  bool group_mattered = false;
  for (int64_t t = 0; t < T; ++t) {
    // The rule written out with ordinary sorting.
    auto b = [&](int64_t e) { return biased[t][e].item<double>(); };
    std::vector<int64_t> groups(8), open, all(16);
    for (int64_t g = 0; g < 8; ++g) groups[g] = g;
    for (int64_t e = 0; e < 16; ++e) all[e] = e;
    std::stable_sort(groups.begin(), groups.end(), [&](int64_t g, int64_t h) {
      return b(2 * g) + b(2 * g + 1) > b(2 * h) + b(2 * h + 1);
    });
    for (int64_t g = 0; g < 3; ++g) open.insert(open.end(), {2 * groups[g], 2 * groups[g] + 1});
    std::sort(open.begin(), open.end());
    auto better = [&](int64_t e, int64_t f) { return b(e) > b(f); };
    std::stable_sort(open.begin(), open.end(), better);
    std::stable_sort(all.begin(), all.end(), better);
    double sum = 0;
    for (int64_t k = 0; k < 4; ++k) sum += s[t][open[k]].item<double>();
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t expert = routing.experts_TK[t][k].item<int64_t>();
      EXPECT_EQ(expert, open[k]) << "token " << t << " slot " << k;
      EXPECT_NEAR(routing.weights_TK[t][k].item<double>(), 2.5 * s[t][expert].item<double>() / sum,
                  1e-14);
      group_mattered |= expert != all[k];
      used.insert(expert);
    }
  }
  EXPECT_TRUE(group_mattered);
  EXPECT_GT(used.size(), 4u);
  EXPECT_EQ(router.sums.counts.sum().item<int64_t>(), T * 4);  // of the actual choice
  EXPECT_TRUE(router.sums.counts.equal(
      at::bincount(routing.experts_TK.reshape({-1}), {}, 16)));
}

TEST(DropBeyond, TheLeastWeightsOrTheLastTokensGo) {
  auto slots = [](const std::vector<int64_t>& experts) { return at::tensor(experts); };
  const at::Tensor experts = slots({0, 1, 0, 2, 1, 0, 0, 2}).view({4, 2});
  const at::Tensor weights = scores({0.5, 0.1, 0.2, 0.9, 0.3, 0.5, 0.2, 0.4}).view({4, 2});
  auto dropped = [&](int64_t capacity, bool last) {
    return drop_beyond(capacity, last, experts, weights, 3).reshape({-1});
  };
  // Expert 0 is chosen with 0.5, 0.2, 0.5, 0.2; of the two equal ones the later goes.
  EXPECT_TRUE(dropped(3, false).equal(slots({0, 1, 0, 2, 1, 0, 3, 2})));
  EXPECT_TRUE(dropped(2, false).equal(slots({0, 1, 3, 2, 1, 0, 3, 2})));
  EXPECT_TRUE(dropped(1, false).equal(slots({0, 3, 3, 2, 1, 3, 3, 3})));
  EXPECT_TRUE(dropped(2, true).equal(slots({0, 1, 0, 2, 1, 3, 3, 2})));
  EXPECT_TRUE(dropped(0, true).equal(at::full({8}, 3, at::kLong)));
  EXPECT_TRUE(dropped(4, false).equal(experts.reshape({-1})));
  EXPECT_EQ(drop_beyond(1, false, experts.narrow(0, 0, 0), weights.narrow(0, 0, 0), 3).numel(), 0);
}

TEST(Router, CountsWhatItRoutedAndWhatMetAFullExpert) {
  const ModelConfig model = grouped_model();
  ProcessMesh mesh(MeshShape{}, make_single_communicator());
  ParameterStore store(mesh, Precision::kFp64);
  RouterSettings settings;
  settings.capacity_factor = 1;  // ceil(30 x 4 / 16) = 8 tokens for each expert
  Router router(model, 0, "", store, settings);
  store.allocate(64);
  Parameter& weight = store.find("gate.weight");
  weight.value.copy_(at::sin(at::arange(weight.numel(), weight.value.options()) * 1.7)
                         .view(weight.value.sizes()));
  const int64_t T = 30;
  const at::Tensor x = at::cos(at::arange(T * 24, weight.value.options()) * 0.31).view({T, 24});
  const at::Tensor row = at::zeros({T}, at::TensorOptions(at::kLong));
  const at::Tensor kept = router.forward(x, row, 1).experts_TK;
  router.training = false;
  const at::Tensor all = router.forward(x, row, 1).experts_TK;  // nothing is dropped here
  const at::Tensor counts = at::bincount(all.reshape({-1}), {}, 16);
  ASSERT_GT(counts.max().item<int64_t>(), 8);
  EXPECT_TRUE(router.sums.counts.equal(counts));
  EXPECT_EQ(router.sums.num_dropped, (counts - 8).clamp_min(0).sum().item<int64_t>());
  EXPECT_TRUE(at::bincount(kept.reshape({-1}), {}, 17).narrow(0, 0, 16).equal(counts.clamp_max(8)));
  EXPECT_TRUE(at::where(kept.eq(16), all, kept).equal(all));
}

}  // namespace
}  // namespace maniple

#include "objectives/distillation.h"

#include <gtest/gtest.h>

namespace maniple {
namespace {

TEST(CeWeight, FollowsItsSchedule) {
  DistillConfig c;
  c.alpha = 0.2;
  c.alpha_end = 0.6;
  EXPECT_EQ(ce_weight(c, 7, 11, 1, 1), 0.2);
  c.schedule = "linear";
  EXPECT_DOUBLE_EQ(ce_weight(c, 1, 11, 1, 1), 0.2);
  EXPECT_DOUBLE_EQ(ce_weight(c, 6, 11, 1, 1), 0.4);
  EXPECT_DOUBLE_EQ(ce_weight(c, 11, 11, 1, 1), 0.6);
  EXPECT_DOUBLE_EQ(ce_weight(c, 1, 1, 1, 1), 0.2);
  c.schedule = "lr";  // the weight of the distillation is 0.8 at the peak
  EXPECT_DOUBLE_EQ(ce_weight(c, 7, 11, 3e-3, 3e-3), 0.2);
  EXPECT_DOUBLE_EQ(ce_weight(c, 7, 11, 1.5e-3, 3e-3), 0.6);
  EXPECT_DOUBLE_EQ(ce_weight(c, 7, 11, 0, 3e-3), 1);
}

// One row whose only token was drawn as 3 four times and as 5 once; vocabulary 8, label 3.
MicroBatch batch_of_one() {
  Row row;
  row.target = {3};
  row.teacher = {{0, 2}, {3, 5}, {4, 1}, {}, {0.9f}, {-1}};
  MicroBatch b;
  b.rows = {row};
  b.target = at::full({1, 1}, 3, at::TensorOptions(at::kLong));
  return b;
}

TEST(Distillation, SumsSplitTheLoss) {
  DistillConfig c;
  c.draws = 5;
  const auto objective = make_distillation(c, [](int64_t step) { return step == 2 ? 0.25 : 0.0; }, nullptr);
  Parameter head;
  head.offset = {0, 0};
  head.shape = {8, 8};
  head.value = at::eye(8, at::TensorOptions(at::kDouble));
  head.grad = at::zeros_like(head.value);
  const at::Tensor h = at::linspace(-1, 1, 8, at::TensorOptions(at::kDouble)).unsqueeze(0).requires_grad_();
  const auto tp = make_single_communicator();
  objective->begin_attempt(1);
  objective->loss(batch_of_one(), h, head, 8, 1, *tp);
  objective->begin_attempt(2);  // drops the sums of the attempt before
  objective->loss(batch_of_one(), h, head, 8, 1, *tp);
  const ObjectiveSums sums = objective->take_sums();
  EXPECT_EQ(sums.num_targets, 1);
  ASSERT_EQ(objective->names().size(), sums.values.size());
  const double loss = sums.values[0], ce = sums.values[1], kd = sums.values[2], kl = sums.values[3],
               entropy = sums.values[4], alpha = sums.values[5];
  const at::Tensor log_p = at::log_softmax(h.detach()[0], 0);
  EXPECT_NEAR(ce, -log_p[3].item<double>(), 1e-12);
  EXPECT_NEAR(kd, -0.8 * log_p[3].item<double>() - 0.2 * log_p[5].item<double>(), 1e-12);
  EXPECT_NEAR(entropy, -0.8 * std::log(0.8) - 0.2 * std::log(0.2), 1e-12);
  EXPECT_NEAR(kl, kd - entropy, 1e-12);
  EXPECT_NEAR(loss, 0.25 * ce + 0.75 * kd, 1e-12);
  EXPECT_EQ(alpha, 0.25);
  EXPECT_EQ(objective->take_sums().num_targets, 0);
}

}  // namespace
}  // namespace maniple

// Attempts of a step that fail on one rank: all redo it and get the bits of a run without fault.
// And routing at its extremes, and the gradients of the balance losses.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "core/errors.h"
#include "kernels/flip_bit.h"
#include "moe/row_balance.h"
#include "tiny_trainer.h"

namespace maniple {
namespace {

void expect_redone(const TrainedSteps& good, const TrainedSteps& redone) {
  for (size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(good.steps[s].attempts, 1);
    EXPECT_EQ(redone.steps[s].attempts, s == 1 ? 2 : 1);
    EXPECT_EQ(good.steps[s].loss, redone.steps[s].loss);
    EXPECT_EQ(good.steps[s].grad_norm, redone.steps[s].grad_norm);
    EXPECT_EQ(good.steps[s].aux_loss, redone.steps[s].aux_loss);
    EXPECT_EQ(good.steps[s].num_targets, redone.steps[s].num_targets);
    EXPECT_EQ(good.steps[s].counts, redone.steps[s].counts);
    EXPECT_TRUE(good.states[s] == redone.states[s]);
  }
  EXPECT_FALSE(good.states[0] == good.states[1]);
  EXPECT_NE(good.steps[0].loss, good.steps[1].loss);
}

BeforeStep fault_of_rank(int rank, FaultPoint::Phase phase) {
  return [=](Trainer& t, int64_t) {
    if (t.mesh.world().rank() == rank)
      t.step.inject_fault = [=](const FaultPoint& f) {
        return f.step == 2 && f.attempt == 0 && f.phase == phase && (f.unit < 0 || f.unit % 2 == 1);
      };
  };
}

TEST(Attempt, FaultInBackwardIsRedoneByAll) {
  Config c = tiny_config();
  c.parallel.slices = 2;
  expect_redone(train_steps(c, 2), train_steps(c, 2, fault_of_rank(1, FaultPoint::kBackward)));
}

TEST(Attempt, FaultInExchangeIsRedoneByAll) {
  Config c = tiny_config();
  c.parallel.slices = 2;
  c.parallel.ep = 2;
  expect_redone(train_steps(c, 4), train_steps(c, 4, fault_of_rank(2, FaultPoint::kExchange)));
}

// One unit on one rank: no integer sums, the gradients themselves must be cleared.
TEST(Attempt, FaultOfTheOnlyUnitIsRedone) {
  Config c = tiny_config();
  c.batch.units = 1;
  expect_redone(train_steps(c, 1), train_steps(c, 1, fault_of_rank(0, FaultPoint::kExchange)));
}

// Spoils an expert gradient of rank 1 in step 2, its first unit: one whose sum rank 1 owns too, so
// that the other rank learns of it by the vote alone.
std::function<bool(const FaultPoint&)> spoil_gradients(Trainer& t, float value, bool fail) {
  return [=, &t](const FaultPoint& f) {
    if (t.mesh.world().rank() != 1 || f.step != 2 || f.attempt != 0 ||
        f.phase != FaultPoint::kBackward || f.unit % 2 != 0)
      return false;
    const at::Tensor& grad = t.model.store.group(GradGroup::kExpert).grad;
    grad.narrow(0, grad.numel() * 3 / 4, 1).fill_(value);
    return fail;
  };
}

// The redone attempt is judged by itself: it is finite, so nothing is skipped.
TEST(Attempt, NanOfAFailedAttemptLeavesNoTrace) {
  Config c = tiny_config();
  c.parallel.slices = 2;
  const auto fault = [](Trainer& t, int64_t) {
    t.step.inject_fault = spoil_gradients(t, std::nanf(""), true);
  };
  expect_redone(train_steps(c, 2), train_steps(c, 2, fault));
}

TEST(Attempt, StepThatIsNotFiniteIsSkippedByAll) {
  Config c = tiny_config();
  c.parallel.slices = 2;
  for (const float value : {std::nanf(""), -INFINITY, 1e30f})
    run_local_ranks(2, [&](std::unique_ptr<Communicator> world) {
      Trainer t(c, std::move(world));
      t.step.inject_fault = spoil_gradients(t, value, false);
      EXPECT_FALSE(t.step.run(1, 1e-3).skipped);
      const Fingerprint before = t.model.optimizer->fingerprint();
      const at::Tensor f = t.model.moe_layers[0]->router().previous_f.clone();
      const StepOutcome out = t.step.run(2, 1e-3);
      EXPECT_TRUE(out.skipped);
      EXPECT_EQ(out.attempts, 1);
      EXPECT_TRUE(std::isnan(out.loss));
      EXPECT_EQ(t.step.applied_steps, 1);
      EXPECT_TRUE(t.model.optimizer->fingerprint() == before);
      EXPECT_TRUE(at::equal(t.model.moe_layers[0]->router().previous_f, f));
      const StepOutcome next = t.step.run(3, 1e-3);
      EXPECT_FALSE(next.skipped);
      EXPECT_TRUE(std::isfinite(next.loss));
      EXPECT_EQ(t.step.applied_steps, 2);
      EXPECT_FALSE(t.model.optimizer->fingerprint() == before);
    });
}

TEST(Attempt, CorruptCountsAreNoticedAndRedone) {
  Config c = tiny_config();
  c.parallel.ep = 2;
  for (const int64_t error : {int64_t{1}, int64_t{-1000}}) {
    const auto corrupt = [&](Trainer& t, int64_t step) {
      if (t.mesh.world().rank() != 1 || step != 2) return;
      auto first = std::make_shared<bool>(true);
      t.model.moe.corrupt_counts = [=](std::vector<int64_t>& counts) {
        if (std::exchange(*first, false)) counts[3] += error;
      };
    };
    expect_redone(train_steps(c, 2), train_steps(c, 2, corrupt));
  }
}

TEST(Attempt, RowsThatDoNotArriveAsTheyWereSentAreNoticedAndRedone) {
  for (const int64_t etp : {1, 2}) {
    Config c = tiny_config();
    c.parallel.ep = 2;
    c.parallel.etp = etp;
    c.batch.rows = 8 * etp;
    const int ranks = static_cast<int>(2 * etp);
    for (const int calls : {0, 1, 2}) {  // a row, a weight of a row, a row of the second layer
      const auto flip = [&](Trainer& t, int64_t step) {
        if (t.mesh.world().rank() != 1 || step != 2) return;
        auto left = std::make_shared<int>(calls);
        t.model.moe.on_tensor = [=](const char* what, const at::Tensor& x) {
          if (std::string(what) == "row" && (*left)-- == 0) flip_bit(x, 5, 0);
        };
      };
      expect_redone(train_steps(c, ranks), train_steps(c, ranks, flip));
    }
  }
}

uint64_t balance_of(const at::Tensor& x, const at::Tensor& y, const std::vector<ExpertRows>& sent,
                    const std::vector<ExpertRows>& received) {
  uint64_t balance = 0;
  weigh_rows(x, sent, Side::kSender, balance);
  weigh_rows(y, received, Side::kReceiver, balance);
  return balance;
}

TEST(RowBalance, IsZeroForTheSameRowsAtTheSameExpertsAlone) {
  const std::vector<ExpertRows> rows = {{4, 2}, {5, 0}, {7, 3}};
  const at::Tensor x = at::arange(15, at::kFloat).view({5, 3});
  const auto pick = [&](std::vector<int64_t> order) { return x.index_select(0, at::tensor(order)); };
  EXPECT_EQ(balance_of(x, pick({1, 0, 4, 2, 3}), rows, rows), 0u);
  EXPECT_NE(balance_of(x, pick({2, 1, 0, 3, 4}), rows, rows), 0u);  // at the wrong expert
  EXPECT_NE(balance_of(x, pick({0, 1, 2, 2, 4}), rows, rows), 0u);  // twice
  EXPECT_NE(balance_of(x, x, rows, {{4, 2}, {6, 3}}), 0u);
  EXPECT_NE(balance_of(x, x.narrow(0, 0, 4), rows, {{4, 2}, {7, 2}}), 0u);  // lost
  for (int bit = 0; bit < 32; ++bit) {
    const at::Tensor y = x.clone();
    flip_bit(y, 7, bit);
    EXPECT_NE(balance_of(x, y, rows, rows), 0u) << bit;
  }
}

TEST(RowBalance, InBackwardTheReceiverSends) {
  const std::vector<ExpertRows> rows = {{0, 2}, {1, 2}};
  for (const bool damaged : {false, true}) {
    uint64_t balance = 0;
    const at::Tensor x = at::randn({4, 3}).requires_grad_();
    const at::Tensor sent = weigh_rows(x, rows, Side::kSender, balance);
    // On its way back row 3 becomes another.
    const at::Tensor moved = damaged ? sent * at::tensor({1.0, 1.0, 1.0, 2.0}).view({4, 1}).to(at::kFloat) : sent * 1;
    const at::Tensor y = weigh_rows(sent.detach().requires_grad_(), rows, Side::kReceiver, balance);
    EXPECT_EQ(balance, 0u);
    const at::Tensor grad = at::randn({4, 3});
    y.backward(grad);
    moved.backward(grad);
    EXPECT_EQ(balance != 0, damaged);
  }
}

TEST(Attempt, TooManyFaultsEndEveryRank) {
  Config c = tiny_config();
  c.parallel.slices = 2;
  std::mutex mutex;
  int ended = 0;
  int64_t calls = 0;
  run_local_ranks(2, [&](std::unique_ptr<Communicator> world) {
    Trainer t(c, std::move(world));
    if (t.mesh.world().rank() == 0)
      t.step.inject_fault = [&](const FaultPoint& f) {
        calls += f.phase == FaultPoint::kExchange;
        return f.phase == FaultPoint::kExchange;
      };
    try {
      t.step.run(1, 1e-3);
    } catch (const CommError& e) {
      const std::lock_guard lock(mutex);
      ++ended;
      EXPECT_NE(std::string(e.what()).find("step 1 failed 4 times"), std::string::npos) << e.what();
    }
    EXPECT_EQ(t.step.applied_steps, 0);
  });
  EXPECT_EQ(ended, 2);
  EXPECT_EQ(calls, TrainStep::kMaxAttempts);
}

// As many faults as are allowed, and not one more.
TEST(Attempt, LastAttemptCounts) {
  Config c = tiny_config();
  const auto faults = [](Trainer& t, int64_t) {
    t.step.inject_fault = [](const FaultPoint& f) {
      return f.phase == FaultPoint::kBackward && f.attempt + 1 < TrainStep::kMaxAttempts;
    };
  };
  const TrainedSteps good = train_steps(c, 1), redone = train_steps(c, 1, faults);
  EXPECT_EQ(redone.steps[2].attempts, TrainStep::kMaxAttempts);
  EXPECT_TRUE(good.states[2] == redone.states[2]);
}

TEST(Routing, SkewedOnExpertRanksIsThatOfOneRank) {
  Config c = tiny_config();
  c.moe.routing = "skewed";
  c.train.precision = "fp64";
  const TrainedSteps one = train_steps(c, 1);
  c.parallel.ep = 2;
  const TrainedSteps two = train_steps(c, 2);
  for (size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(one.steps[s].counts, two.steps[s].counts);
    const auto& counts = two.steps[s].counts[0];  // half of all slots go to the first top-k experts
    EXPECT_EQ(counts[0] + counts[1], c.batch.rows * c.batch.seq_len);
    EXPECT_NEAR(one.steps[s].loss, two.steps[s].loss, 1e-9);
    EXPECT_NEAR(one.steps[s].grad_norm / two.steps[s].grad_norm, 1, 1e-6);
  }
}

// A selection bias that sends every token to experts 0 and 1, both on the first rank: the second
// rank computes nothing and six experts get no token.
TEST(Routing, AllTokensToTheExpertsOfOneRank) {
  Config c = tiny_config();
  c.train.precision = "fp64";
  c.moe.bias_rate = 0;
  const auto bias = [](Trainer& t, int64_t) {
    for (MoeLayer* layer : t.model.moe_layers) layer->router().bias.narrow(0, 0, 2).fill_(1e3);
  };
  const TrainedSteps one = train_steps(c, 1, bias);
  c.parallel.ep = 2;
  const TrainedSteps two = train_steps(c, 2, bias);
  const int64_t tokens = c.batch.rows * c.batch.seq_len;
  for (size_t s = 0; s < 3; ++s) {
    for (const auto& counts : two.steps[s].counts)
      EXPECT_EQ(counts, (std::vector<int64_t>{tokens, tokens, 0, 0, 0, 0, 0, 0}));
    EXPECT_FALSE(two.steps[s].skipped);
    EXPECT_NEAR(one.steps[s].loss, two.steps[s].loss, 1e-9);
  }
  EXPECT_LT(two.steps[2].loss, two.steps[0].loss);
}

// The gradient of the balance losses alone, of the first layer's router weight, against central
// differences. f, the counts, are constants in the loss, and the previous step's are uneven here.
TEST(BalanceLoss, GradientIsThatOfFiniteDifferences) {
  for (const auto& [aux, z] : {std::pair{0.5, 0.0}, {0.0, 0.5}, {0.3, 0.2}}) {
    Config c = tiny_config();
    c.train.precision = "fp64";
    c.moe.aux_coef = aux;
    c.moe.z_coef = z;
    Trainer t(c, make_single_communicator());
    const auto wide = at::TensorOptions(at::kDouble);
    t.model.moe_layers[0]->router().previous_f.copy_(
        at::tensor(std::vector<double>{.3, .2, .1, .1, .1, .1, .06, .04}, wide));
    const Row row = t.rows->row(Split::kTrain, 3);
    auto tensor_of = [](const std::vector<int32_t>& v) {
      return at::tensor(std::vector<int64_t>(v.begin(), v.end()), at::TensorOptions(at::kLong))
          .unsqueeze(0).to(test_device());
    };
    // The first layer's loss: what lies behind the first router does not enter it.
    auto loss = [&] {
      t.model.decoder->forward(tensor_of(row.input), tensor_of(row.position), tensor_of(row.document));
      return t.model.decoder->take_losses().at(0);
    };
    std::string name;
    for (const Parameter& p : t.model.store.parameters())
      if (name.empty() && p.name.ends_with("gate.weight")) name = p.name;
    Parameter& weight = t.model.store.find(name);
    t.model.store.zero_grad();
    loss().backward();
    const at::Tensor gradient = weight.grad.cpu().clone().reshape({-1});
    at::NoGradGuard no_grad;
    const at::Tensor w = weight.value.view({-1});
    double largest = 0;
    for (const int64_t i : {0, 5, 71, 72, 200, 333, 500, 575}) {
      const double h = 1e-5, before = w[i].item<double>();
      w[i].fill_(before + h);
      const double up = loss().item<double>();
      w[i].fill_(before - h);
      const double down = loss().item<double>();
      w[i].fill_(before);
      const double expected = (up - down) / (2 * h), got = gradient[i].item<double>();
      EXPECT_NEAR(got, expected, 1e-6 * std::abs(expected) + 1e-8) << name << " " << i;
      largest = std::max(largest, std::abs(got));
    }
    EXPECT_GT(largest, 1e-3);
  }
}

}  // namespace
}  // namespace maniple

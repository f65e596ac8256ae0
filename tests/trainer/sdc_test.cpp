// What finds a flipped bit, by place and bit. Prints the table of docs/elastic.md; the long form
// (MANIPLE_SLOW=1) has 30 trials a cell.
#include <fmt/format.h>

#include <atomic>
#include <cstdlib>
#include <set>

#include "core/errors.h"
#include "elastic/reshard.h"
#include "members.h"
#include "tiny_trainer.h"
#include "trainer/fault_injector.h"

namespace maniple {
namespace {

struct BitClass {
  const char* name;
  int bit;
};
constexpr BitClass kBits[] = {{"sign", 31},         {"exponent high", 30}, {"exponent low", 23},
                              {"mantissa high", 22}, {"mantissa middle", 11}, {"mantissa low", 0}};

bool communicate_only(const std::function<void()>& communicate) {
  communicate();
  return true;
}

int trials() { return std::getenv("MANIPLE_SLOW") ? 30 : 3; }

// Some steps old, so that moments are not zero.
class Sdc : public testing::Test {
 protected:
  Sdc() : t_(tiny_config(), make_single_communicator()) {
    for (int64_t s = 1; s < kStep; ++s) t_.step.run(s, t_.config.optim.lr);
    for (int64_t b = 0; b < optimizer().num_blocks(); ++b) all_.push_back(b);
    clean_ = optimizer().pack(all_);
    sums_ = attempt();
    computed_ = t_.step.computed(sums_);
  }
  ShardedAdamw& optimizer() { return *t_.model.optimizer; }
  StepSums attempt() {
    StepSums sums = t_.step.compute(kStep, 0);
    t_.step.exchange(sums, communicate_only);
    return sums;
  }
  int64_t num_elements() {
    int64_t elements = 0;
    for (const TensorSlice& s : optimizer().state_slices(ShardedAdamw::Blocks::kHeld, false))
      elements += s.end - s.begin;
    return elements;
  }
  int64_t any(int64_t n) { return static_cast<int64_t>(key_of(11, ++draws_) % static_cast<uint64_t>(n)); }

  static constexpr int64_t kStep = 6;
  Trainer t_;
  std::vector<int64_t> all_;
  at::Tensor clean_;
  StepSums sums_;
  Fingerprint computed_;
  uint64_t draws_ = 0;
};

TEST_F(Sdc, EveryFlipInTheStateIsFound) {
  const int64_t elements = num_elements();
  const uint64_t parameters = optimizer().parameter_hash();
  for (const char* what : {"master", "m", "v", "parameter"})
    for (const auto& [name, bit] : kBits)
      for (int i = 0; i < trials(); ++i) {
        optimizer().seal();
        const int64_t element = any(elements);
        optimizer().flip(what, element, bit);
        if (std::string(what) == "parameter") {
          EXPECT_NE(optimizer().parameter_hash(), parameters) << name;
          optimizer().flip(what, element, bit);
          EXPECT_EQ(optimizer().parameter_hash(), parameters);
          continue;
        }
        optimizer().update(0, 1, 1, kStep);
        EXPECT_EQ(optimizer().broken_seals().size(), 1u) << what << " " << name;
        optimizer().unpack(all_, clean_);
        optimizer().refresh_values();
      }
  optimizer().seal();
  optimizer().update(1e-3, 1, 1, kStep);
  optimizer().update(1e-3, 1, 1, kStep + 1);
  EXPECT_TRUE(optimizer().broken_seals().empty());
}

// A canary compares gradients, so it sees whatever changes the gradient of its unit.
TEST_F(Sdc, FlipsInTheComputationChangeWhatCanariesAndReplaysCompare) {
  fmt::print("{:<10} {:<16} {:>8} {:>16} {:>12}\n", "place", "bit", "trials", "changes a result",
             "not finite");
  for (const std::string what : {"gradient", "hidden", "gate", "expert", "index"})
    for (const auto& [name, bit] : kBits) {
      if (what == "index" && bit > 2 && bit != 31) continue;
      const int at_bit = what == "index" ? (bit == 31 ? 1 : 0) : bit;  // a number of eight experts
      int changed = 0, alarmed = 0;
      for (int i = 0; i < trials(); ++i) {
        FaultsConfig faults;
        faults.flip = fmt::format("0:0:{}:{}:{}:{}", kStep, what, any(num_elements()), at_bit);
        FaultInjector injector(faults, 0, 1, 0, t_.step, t_.model);
        injector.begin(kStep, 0);
        const StepSums sums = attempt();
        changed += !(t_.step.computed(sums) == computed_);
        alarmed += !TrainStep::finite(sums);
        t_.step.on_gradients = {};
        t_.model.moe.on_tensor = {};
        t_.model.decoder->on_hidden = {};
      }
      fmt::print("{:<10} {:<16} {:>8} {:>16} {:>12}\n", what,
                 what == "index" ? fmt::format("bit {}", at_bit) : name, trials(), changed, alarmed);
      EXPECT_LE(alarmed, changed);
    }
  EXPECT_TRUE(t_.step.computed(attempt()) == computed_);
}

TEST_F(Sdc, AUnitHasTheSameGradientInAndOutsideItsRange) {
  std::vector<uint64_t> inside, outside;
  t_.step.on_gradients = [&](TrainStep::GradientPlace place) {
    if (place == TrainStep::GradientPlace::kUnit) inside.push_back(optimizer().gradient_hash());
  };
  attempt();
  t_.step.on_gradients = {};
  for (int64_t u = 0; u < t_.step.num_units(); ++u)
    outside.push_back(t_.step.unit(kStep, u).gradient_hash);
  EXPECT_EQ(inside, outside);
  EXPECT_TRUE(t_.step.computed(attempt()) == computed_);
}

TEST(SdcVote, AWatchedSliceComputesEachUnitOfTheOthersInTurn) {
  for (const int64_t slices : {2, 3, 4})
    for (int64_t second = 0; second < slices; ++second) {
      std::set<int64_t> seen;
      const int64_t units = 13, first = second * units / slices, last = (second + 1) * units / slices;
      for (int64_t step = 1; step <= units - (last - first); ++step) {
        const Canary c = canary_by(second, step, units, slices);
        EXPECT_EQ(c.second, second);
        EXPECT_TRUE(c.unit >= 0 && c.unit < units && (c.unit < first || c.unit >= last));
        seen.insert(c.unit);
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), units - (last - first));
    }
}

TEST(Faults, WhatIsNoFaultIsRefused) {
  for (const char* text : {"1:0:20:master:5", "1:0:20:master:5:3x", "1:0:20:none:5:3", "x:0:20:m:5:3", "1a:0:20:m:5:3", "al:0:20:m:5:3",
                           ":0:20:m:5:3", "1:0:20:m:5:3:0.5", "1:0:20:m:-5:3", "1:0:20:m:5:3:"})
    EXPECT_THROW(parse_flips(text, "faults.flip", false), ConfigError) << text;
  for (const char* text : {"1:0:20:m:5:3:", "1:0:20:m:5:3:2", "1:0:20:m:5:3:0.5:1", "1:0:20:m:5:3:x"})
    EXPECT_THROW(parse_flips(text, "faults.sticky", true), ConfigError) << text;
  const auto flips = parse_flips("all:1:20:row:5:3:0.25, 12:0:3:gradient:7:30", "faults.sticky", true);
  ASSERT_EQ(flips.size(), 2u);
  EXPECT_FALSE(flips[0].slice);
  EXPECT_EQ(flips[0].probability, 0.25);
  EXPECT_EQ(flips[1].slice, SliceId{12});
  EXPECT_EQ(flips[1].probability, 1);
  for (const char* text : {"1:2", "1:2:x", "1:2:3:4", "a:2:3"})
    EXPECT_THROW(parse_spikes(text), ConfigError) << text;
  EXPECT_EQ(parse_spikes("3:1:-2.5, 4:0:nan").size(), 2u);
}

// Two slices; the second one's results are damaged, or those of both.
TEST(SdcVote, ACanaryThatDiffersBreaksItsCheck) {
  for (const int64_t damaged : {-1, 0, 1, 2}) {
    Config c = tiny_config();
    c.parallel.slices = 2;
    run_local_ranks(2, [&](std::unique_ptr<Communicator> world) {
      Trainer t(c, std::move(world));
      int64_t units = 0;
      t.step.on_gradients = [&](TrainStep::GradientPlace place) {
        if (place != TrainStep::GradientPlace::kUnit) return;
        // Unit 0 is the first of slice 0, and the last that slice 1 computes.
        if (damaged == t.mesh.slice() && units == (damaged ? 2 : 0))
          t.model.optimizer->flip("gradient", 777, 0);
        if (damaged == 2 && t.mesh.slice() == 0 && units == 1)  // another unit
          t.model.optimizer->flip("gradient", 777, 0);
        ++units;
      };
      StepSums sums = t.step.compute(1, 0, {}, Canary{0, 1});
      t.step.exchange(sums, communicate_only);
      EXPECT_EQ(TrainStep::broken(sums, Check::kCanary), damaged == 0 || damaged == 1) << damaged;
      EXPECT_FALSE(TrainStep::failed(sums));
    });
  }
}

// Two ranks of a slice send each other rows for the experts; one bit of what arrives is flipped.
TEST(SdcVote, EveryFlipInARowForTheExpertsIsFound) {
  Config c = tiny_config();
  c.parallel.ep = 2;
  for (const auto& [name, bit] : kBits) {
    std::atomic<int> found = 0;
    run_local_ranks(2, [&](std::unique_ptr<Communicator> world) {
      Trainer t(c, std::move(world));
      for (int i = 0; i < trials(); ++i) {
        const int64_t victim = i % 2, element = static_cast<int64_t>(key_of(13, bit, i) % 1000000);
        FaultsConfig faults;
        faults.flip = fmt::format("0:{}:1:row:{}:{}", victim, element, bit);
        FaultInjector injector(faults, 0, 1, t.mesh.world().rank(), t.step, t.model);
        injector.begin(1, 0);
        StepSums sums = t.step.compute(1, 0);
        t.step.exchange(sums, communicate_only);
        t.step.on_gradients = {};
        t.model.moe.on_tensor = {};
        t.model.decoder->on_hidden = {};
        if (t.mesh.world().rank() == 0) found += TrainStep::broken(sums, Check::kRows);
      }
      StepSums sums = t.step.compute(1, 0);
      t.step.exchange(sums, communicate_only);
      EXPECT_FALSE(TrainStep::broken(sums, Check::kRows));
    });
    fmt::print("{:<10} {:<16} {:>8} {:>16}\n", "row", name, trials(), found.load());
    EXPECT_EQ(found, trials()) << name;
  }
}

// Two slices of two ranks, with two holders of each block; one rank's sums are damaged.
TEST(SdcVote, SumsThatAreNotThoseOfTheirAddendsBreakTheirCheck) {
  using Place = TrainStep::GradientPlace;
  for (const char* what : {"", "sum", "reduced"}) {
    Config c = tiny_config();
    c.parallel.slices = 2;
    c.parallel.ep = 2;
    run_local_ranks(4, [&](std::unique_ptr<Communicator> world) {
      Trainer t(c, std::move(world));
      ShardedAdamw& optimizer = *t.model.optimizer;
      optimizer.forget();
      optimizer.set_holders(holders({optimizer.num_blocks(), Redundancy::kShadow}, members_of(2)));
      set_random_weights(t.model, c.run.seed);
      optimizer.publish();
      const Place place = std::string(what) == "sum" ? Place::kSum : Place::kReduced;
      t.step.on_gradients = [&](Place now) {
        if (*what && now == place && t.mesh.world().rank() == 2) optimizer.flip(what, 777, 0);
      };
      StepSums sums = t.step.compute(1, 0, {}, {});
      t.step.exchange(sums, communicate_only);
      // What crosses wrongly is wrong at both holders.
      EXPECT_EQ(TrainStep::broken(sums, Check::kBlocks), std::string(what) == "reduced") << what;
      const bool sums_broken = TrainStep::broken(sums, Check::kSums);
      if (std::string(what) != "reduced") { EXPECT_EQ(sums_broken, *what != 0) << what; }
    });
  }
}

}  // namespace
}  // namespace maniple

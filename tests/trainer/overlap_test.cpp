// The exchange that begins while the last unit's backward goes on: the same bits as after it.
#include <atomic>

#include "core/errors.h"
#include "elastic/reshard.h"
#include "members.h"
#include "tiny_trainer.h"

namespace maniple {
namespace {

// Says that sums get on by progress(), and makes them wait for it or for the end.
class Deferred : public Communicator {
 public:
  Deferred(std::unique_ptr<Communicator> inner, std::atomic<int>& sums)
      : inner_(std::move(inner)), sums_(sums) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override {
    return inner_->begin_all_gather(in, out);
  }
  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override {
    inner_->all_gather_v(in, out, counts);
  }
  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override {
    inner_->all_to_all_v(in, send_rows, out, recv_rows);
  }
  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override {
    struct Later : Work {
      void wait() override {
        if (sum) std::exchange(sum, {})();
      }
      void progress() override { wait(); }
      std::function<void()> sum;
    };
    ++sums_;
    auto work = std::make_unique<Later>();
    work->sum = [this, in, out, counts]() mutable {
      inner_->begin_reduce_scatter(in, out, counts)->wait();
    };
    return work;
  }
  bool overlaps() const override { return true; }
  void all_reduce(at::Tensor& t) override { inner_->all_reduce(t); }
  void broadcast(at::Tensor& t, int root) override { inner_->broadcast(t, root); }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<Deferred>(inner_->split(color, key), sums_);
  }

 private:
  std::unique_ptr<Communicator> inner_;
  std::atomic<int>& sums_;
};

struct OverlapLayout {
  int64_t slices, ep;
  bool recompute;
};

class Overlap : public testing::TestWithParam<OverlapLayout> {};

TEST_P(Overlap, ChangesNoBit) {
  const auto [slices, ep, recompute] = GetParam();
  Config c = tiny_config();
  c.parallel.slices = slices;
  c.parallel.ep = ep;
  c.train.recompute = recompute;
  const int ranks = static_cast<int>(slices * ep);
  std::atomic<int> sums{0};
  const Wrap wrap = [&](std::unique_ptr<Communicator> world) {
    return std::make_unique<Deferred>(std::move(world), sums);
  };
  // Step 2 fails once on the last rank, with sums under way.
  const BeforeStep fault = [&](Trainer& t, int64_t) {
    if (t.mesh.world().rank() == ranks - 1)
      t.step.inject_fault = [](const FaultPoint& f) {
        return f.step == 2 && f.attempt == 0 && f.phase == FaultPoint::kBackward;
      };
  };
  const TrainedSteps plain = train_steps(c, ranks), seen = train_steps(c, ranks, fault, 3, wrap);
  for (size_t s = 0; s < plain.steps.size(); ++s) {
    EXPECT_EQ(seen.steps[s].attempts, s == 1 ? 2 : 1);
    EXPECT_EQ(seen.steps[s].loss, plain.steps[s].loss);
    EXPECT_EQ(seen.steps[s].grad_norm, plain.steps[s].grad_norm);
    EXPECT_TRUE(seen.states[s] == plain.states[s]) << s;
  }
  // Four attempts of four groups at the most would be reduced by this many calls without overlap.
  const int at_once = 4 * kNumGradGroups * ranks * (slices > 1 && ep > 1 ? 2 : 1);
  EXPECT_GT(sums, at_once);
}

// Links of which one has broken: every sum fails.
class Broken : public Communicator {
 public:
  Broken(int& under_way, int& begun) : under_way_(under_way), begun_(begun) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  std::unique_ptr<Work> begin_all_gather(const at::Tensor&, at::Tensor&) override { fail(); }
  void all_gather_v(const at::Tensor&, at::Tensor&, const std::vector<int64_t>&) override { fail(); }
  void all_to_all_v(const at::Tensor&, const std::vector<int64_t>&, at::Tensor&,
                    const std::vector<int64_t>&) override {
    fail();
  }
  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor&, at::Tensor&,
                                             const std::vector<int64_t>&) override {
    struct Fails : Work {
      explicit Fails(int& count) : under_way(count) { ++under_way; }
      ~Fails() override { --under_way; }
      void wait() override { fail(); }
      int& under_way;
    };
    ++begun_;
    return std::make_unique<Fails>(under_way_);
  }
  void all_reduce(at::Tensor&) override { fail(); }
  void broadcast(at::Tensor&, int) override { fail(); }
  void barrier() override { fail(); }
  std::unique_ptr<Communicator> split(int, int) override { fail(); }

 private:
  [[noreturn]] static void fail() { throw CommError("a link broke"); }
  int &under_way_, &begun_;
};

// The next epoch brings other links: nothing may still be moving over these.
TEST(BrokenLinks, LeaveNoSumUnderWay) {
  Trainer t(tiny_config(), make_single_communicator());
  ShardedAdamw& optimizer = *t.model.optimizer;
  int under_way = 0, begun = 0;
  t.mesh.set_across(std::make_unique<Broken>(under_way, begun));
  optimizer.set_holders(holders({optimizer.num_blocks(), Redundancy::kShadow}, members_of(2)));
  optimizer.begin_attempt();
  optimizer.begin_unit();
  ASSERT_TRUE(optimizer.fold_unit());
  optimizer.reduce_in_slice();
  EXPECT_THROW(optimizer.reduce_across(), CommError);
  EXPECT_GT(begun, 1);
  EXPECT_EQ(under_way, 0);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Overlap,
                         testing::Values(OverlapLayout{2, 1, false}, OverlapLayout{4, 1, true},
                                         OverlapLayout{1, 2, false}, OverlapLayout{2, 2, true}));

}  // namespace
}  // namespace maniple

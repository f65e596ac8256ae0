// What the simulation and the exploration share: a slice that consists of the real Membership and a
// model of its optimizer state, and the observer that knows what must never happen.
//
// A block's state is a number that depends on all steps applied to it. The model applies updates,
// copies blocks and drops old copies when the protocol says so, and throws Violation when the data
// is not there: a wrong inventory or plan cannot stay unnoticed.
#pragma once

#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "elastic/coordinator.h"
#include "elastic/membership.h"
#include "elastic/reshard.h"

namespace maniple::model {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int64_t kUnits = 12;  // R

// Truth: what the fault-free run computes.
bool is_finite(Step step);  // a step that is not is skipped
uint64_t value_of(int64_t block, Step step);
std::string row_of(Step step);

struct BlockState {
  Step step = 0;
  uint64_t value = 0;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.value);
  }
};

class ModelSlice {
 public:
  ModelSlice() : ModelSlice(BlockLayout{}, MembershipConfig{}) {}
  ModelSlice(const BlockLayout& layout, const MembershipConfig& config)
      : config(config), machine(config), layout_(layout) {}

  // The PREPARE contents of a healthy attempt.
  AttemptReport report(Step step) const;
  void keep_gradients(const StartAttempt& attempt);
  // ApplyUpdate, Restore and DropOldCopies on the model's blocks.
  void apply(const DecisionRecord& record);
  void begin_restore(const Restore& restore);
  // Whether all that Restore waits for is there; then copies what this slice lacks. `find`: the
  // model of a member, or null when it is gone.
  template <class Find>
  bool finish_restore(const EpochDecision& d, Find find);
  void drop_old_copies(const EpochDecision& d);

  // This slice could give the block at step K: it has it, or the gradients to finish it.
  bool could_give(int64_t block, Step k) const;

  MembershipConfig config;
  Membership machine;
  std::map<int64_t, BlockState> blocks;
  // The reduced gradients of one attempt, for the blocks held in its epoch.
  std::optional<StartAttempt> kept;

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.machine, s.blocks, s.kept.has_value());
    if (s.kept) f(s.kept->epoch, s.kept->step, s.kept->attempt);
  }

 private:
  void load_checkpoint(const EpochDecision& d);
  void check_block(int64_t block, const BlockState& state) const;

  BlockLayout layout_;
};

// Sees every action of every machine and knows what must hold (spec/elastic.md section 8). It is
// part of the explored state, so it keeps no more than it needs.
class Observer {
 public:
  explicit Observer(const BlockLayout& layout = {}, Step last_step = 0)
      : layout_(layout), last_step_(last_step) {}

  // Slice (number, life) emits an action; `slice` is its model before the action is carried out.
  void see(const ModelSlice& slice, const MembershipAction& action);
  // The coordinator's log or files change. `slices`: all models, dead or alive.
  void see(const CoordinatorAction& action, const std::map<SliceId, const ModelSlice*>& slices);
  const std::vector<MetricRow>& rows() const { return rows_; }
  const std::vector<LogRecord>& log() const { return log_; }
  const History& history() const { return history_; }  // what the log adds up to
  Step published() const { return history_.published; }
  uint64_t num_rollbacks() const { return num_rollbacks_; }
  uint64_t num_commits() const { return num_commits_; }

  // For an exploration, whose slices live once: the slice votes no more.
  void gone(SliceId slice) { stopped_[slice] = {{1, kGone}}; }
  // Forgets the PREPAREs of epochs in which nobody votes any more, where one is missing: no record
  // of them may ever be used. The log too, which history() sums up.
  void forget();

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.history_, s.max_stable_, s.sent_, s.voters_, s.stopped_, s.rows_);
  }

 private:
  void see_rollback(const EpochDecision& d, const History& before,
                    const std::map<SliceId, const ModelSlice*>& slices);

  struct SentKey {
    EpochNumber epoch = 0;
    Step step = 0;
    uint32_t attempt = 0;
    SliceId slice = 0;
    auto operator<=>(const SentKey&) const = default;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.epoch, s.step, s.attempt, s.slice);
    }
  };
  static constexpr EpochNumber kGone = std::numeric_limits<EpochNumber>::max();
  static constexpr SliceId kNoSlice = std::numeric_limits<SliceId>::max();

  BlockLayout layout_;
  Step last_step_;
  History history_;
  std::vector<LogRecord> log_;
  Step max_stable_ = 0;             // reported by any slice, not rolled back since
  std::map<SentKey, Health> sent_;  // PREPAREs
  std::map<SliceId, std::map<Life, EpochNumber>> stopped_;  // highest epoch answered with STATE
  std::map<EpochNumber, uint64_t> voters_;  // how many members an epoch with PREPAREs has
  std::vector<MetricRow> rows_;
  uint64_t num_rollbacks_ = 0, num_commits_ = 0;
};

template <class Find>
bool ModelSlice::finish_restore(const EpochDecision& d, Find find) {
  for (const Member& member : d.members) {
    const ModelSlice* other = find(member);
    if (!other || other->machine.decision().number != d.number) return false;
  }
  for (const BlockCopy& copy : plan_copies(layout_, d)) {
    const Member& to = d.members[static_cast<size_t>(copy.to)];
    if (to.slice != config.slice) continue;
    const ModelSlice* donor = find(d.members[static_cast<size_t>(copy.from)]);
    const auto block = donor->blocks.find(copy.block);
    if (block == donor->blocks.end() || block->second.step != d.committed)
      throw Violation(fmt::format("slice {} lacks block {} at step {} that epoch {} counts on",
                                  donor->config.slice, copy.block, d.committed, d.number));
    blocks[copy.block] = block->second;
  }
  if (d.loads_checkpoint()) load_checkpoint(d);
  return true;
}

}  // namespace maniple::model

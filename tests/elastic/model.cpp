#include "model.h"

#include <algorithm>

#include "core/random.h"

namespace maniple::model {

bool is_finite(Step step) { return step % 5 != 3; }

uint64_t value_of(int64_t block, Step step) {
  uint64_t value = key_of(static_cast<uint64_t>(block));
  for (Step k = 1; k <= step; ++k)
    if (is_finite(k)) value = mix64(value ^ static_cast<uint64_t>(k));
  return value;
}

std::string row_of(Step step) { return fmt::format("{:016x}", value_of(-1, step)); }

AttemptReport ModelSlice::report(Step step) const {
  const EpochDecision& d = machine.decision();
  const int64_t n = static_cast<int64_t>(d.members.size()), me = d.index_of(config.slice);
  AttemptReport report;
  report.finite = is_finite(step);
  report.tokens = kUnits * (me + 1) / n - kUnits * me / n;
  return report;
}

void ModelSlice::keep_gradients(const StartAttempt& attempt) { kept = attempt; }

void ModelSlice::check_block(int64_t block, const BlockState& state) const {
  if (state.value != value_of(block, state.step))
    throw Violation(fmt::format("slice {}: block {} differs from the fault-free run at step {}",
                                config.slice, block, state.step));
}

void ModelSlice::apply(const DecisionRecord& record) {
  const auto mine = std::find_if(record.prepares.begin(), record.prepares.end(),
                                 [&](const Prepare& p) { return p.slice == config.slice; });
  if (mine == record.prepares.end() || !kept || kept->epoch != mine->epoch ||
      kept->step != record.step || kept->attempt != mine->attempt)
    throw Violation(
        fmt::format("slice {} has not kept the gradients of step {}", config.slice, record.step));
  for (auto& [block, state] : blocks) {
    if (state.step != record.step - 1)
      throw Violation(fmt::format("slice {}: update of step {} meets block {} at step {}",
                                  config.slice, record.step, block, state.step));
    if (record.outcome == Outcome::kCommit)
      state.value = mix64(state.value ^ static_cast<uint64_t>(record.step));
    state.step = record.step;
    check_block(block, state);
  }
}

void ModelSlice::begin_restore(const Restore& restore) {
  if (!restore.fresh) return;
  blocks.clear();
  kept.reset();
}

void ModelSlice::load_checkpoint(const EpochDecision& d) {
  const auto wanted = holders(layout_, d.members);
  const int me = d.index_of(config.slice);
  for (size_t b = 0; b < wanted.size(); ++b)
    if (std::find(wanted[b].begin(), wanted[b].end(), me) != wanted[b].end())
      blocks[static_cast<int64_t>(b)] = {d.committed,
                                         value_of(static_cast<int64_t>(b), d.committed)};
}

void ModelSlice::drop_old_copies(const EpochDecision& d) {
  const auto wanted = holders(layout_, d.members);
  const int me = d.index_of(config.slice);
  std::map<int64_t, BlockState> left;
  for (size_t b = 0; b < wanted.size(); ++b) {
    if (std::find(wanted[b].begin(), wanted[b].end(), me) == wanted[b].end()) continue;
    const auto at = blocks.find(static_cast<int64_t>(b));
    if (at == blocks.end() || at->second.step != d.committed)
      throw Violation(
          fmt::format("slice {} runs epoch {} without block {}", config.slice, d.number, b));
    check_block(at->first, at->second);
    left.insert(*at);
  }
  blocks = left;
}

bool ModelSlice::could_give(int64_t block, Step k) const {
  const auto at = blocks.find(block);
  if (at == blocks.end()) return false;
  return at->second.step == k || (at->second.step == k - 1 && kept && kept->step == k);
}

void Observer::see(const ModelSlice& slice, const MembershipAction& action) {
  const SliceId id = slice.config.slice;
  EpochNumber& stopped = stopped_[id][slice.config.life];
  if (const auto* to = std::get_if<ToCoordinator>(&action)) {
    if (std::holds_alternative<State>(to->envelope.message))
      stopped = std::max(stopped, to->envelope.epoch);
  } else if (const auto* peers = std::get_if<ToPeers>(&action)) {
    const Prepare& p = peers->prepare;
    if (p.epoch <= stopped) throw Violation(fmt::format("slice {} votes in a stopped epoch", id));
    // Nobody may go beyond an attempt that all have prepared (the attempt rule).
    for (uint32_t a = 0; a < p.attempt; ++a) {
      bool refused = false;
      for (const Member& m : slice.machine.decision().members) {
        const auto at = sent_.find({p.epoch, p.step, a, m.slice});
        refused = refused || (at != sent_.end() && at->second != Health::kOk);
      }
      if (!refused) throw Violation(fmt::format("slice {} repeats an attempt nobody refused", id));
    }
    sent_[{p.epoch, p.step, p.attempt, p.slice}] = p.report.health;
    voters_[p.epoch] = slice.machine.decision().members.size();
  } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
    const DecisionRecord& r = update->record;
    if (r.outcome == Outcome::kRedo || r.prepares.empty())
      throw Violation("a record that commits nothing");
    const bool by_vote = slice.machine.status().phase == SlicePhase::kRunning;
    const Prepare& first = r.prepares.front();
    if (by_vote && first.epoch <= stopped)
      throw Violation(fmt::format("slice {} commits in epoch {} after its STATE", id, first.epoch));
    if (by_vote) ++num_commits_;
    int64_t tokens = 0;
    for (const Prepare& p : r.prepares) {
      const auto at = sent_.find({p.epoch, r.step, p.attempt, p.slice});
      if (at == sent_.end() || at->second != Health::kOk)
        throw Violation(
            fmt::format("step {} commits without an ok PREPARE of slice {}", r.step, p.slice));
      tokens += p.report.tokens;
    }
    if (tokens != kUnits)
      throw Violation(fmt::format("step {} commits {} of {} units", r.step, tokens, kUnits));
    // All of the epoch's members, as the log knows them.
    const PastEpoch* epoch = history_.find_past(first.epoch);
    if (epoch && epoch->members.size() != r.prepares.size())
      throw Violation(fmt::format("step {} commits without unanimity", r.step));
  } else if (const auto* stable = std::get_if<Stable>(&action)) {
    // A slice that was left behind in a history that was rolled back speaks of that history.
    if (history_.epoch && slice.machine.decision().lineage == history_.epoch->lineage)
      max_stable_ = std::max(max_stable_, stable->step);
  }
}

void Observer::see(const CoordinatorAction& action,
                   const std::map<SliceId, const ModelSlice*>& slices) {
  if (const auto* appended = std::get_if<Append>(&action)) {
    const History before = history_;
    history_.apply(appended->record);
    log_.push_back(appended->record);
    if (const auto* epoch = std::get_if<EpochRecord>(&appended->record)) {
      if (epoch->decision.number != before.number() + 1) throw Violation("epochs do not count up");
      const EpochDecision& d = epoch->decision;
      if (d.loads_checkpoint()) {
        if (d.number > 1) see_rollback(d, before, slices);
        max_stable_ = d.committed;
      } else if (before.suspect) {
        throw Violation("a suspect state goes on");
      } else if (d.committed < before.committed) {
        throw Violation("K falls without a rollback");
      } else if (d.committed < max_stable_) {
        throw Violation(fmt::format("epoch {} loses stable step {}", d.number, max_stable_));
      }
    } else if (std::holds_alternative<PausedRecord>(appended->record)) {
      // Stable steps may be gone when all members are; the next epoch then has to roll back.
      if (history_.committed < before.committed) throw Violation("K falls at a pause");
    } else if (const auto* verdict = std::get_if<VerdictRecord>(&appended->record)) {
      if (verdict->verdict.code == 0 && verdict->verdict.committed != last_step_)
        throw Violation("done before the last step");
      for (const auto& [id, slice] : slices)
        if (verdict->verdict.code == 0 && history_.epoch->has(id, slice->config.life) &&
            slice->machine.committed() != last_step_)
          throw Violation(
              fmt::format("done, but slice {} is at step {}", id, slice->machine.committed()));
    }
  } else if (const auto* write = std::get_if<WriteRow>(&action)) {
    if (!rows_.empty() && write->row.step != rows_.back().step + 1)
      throw Violation(fmt::format("row {} after {}", write->row.step, rows_.back().step));
    if (write->row.bytes != row_of(write->row.step))
      throw Violation(fmt::format("row {} differs from the fault-free run", write->row.step));
    if (write->row.step > max_stable_ && write->row.step > history_.committed)
      throw Violation(fmt::format("row {} is reported before it is stable", write->row.step));
    rows_.push_back(write->row);
  } else if (const auto* drop = std::get_if<DropRows>(&action)) {
    while (!rows_.empty() && rows_.back().step > drop->after) rows_.pop_back();
  } else if (const auto* publish = std::get_if<PublishCheckpoint>(&action)) {
    if (publish->step > max_stable_ && publish->step > history_.committed)
      throw Violation("a checkpoint is published before its step is stable");
  }
}

void Observer::forget() {
  log_.clear();
  EpochNumber over = kGone;  // up to this epoch nobody votes
  for (const auto& [slice, lives] : stopped_)
    for (const auto& [life, epoch] : lives) over = std::min(over, epoch);
  for (auto first = sent_.begin(); first != sent_.end();) {
    const auto& [epoch, step, attempt, sender] = first->first;
    const auto last = sent_.upper_bound({epoch, step, attempt, kNoSlice});
    const size_t oks =
        std::count_if(first, last, [](const auto& entry) { return entry.second == Health::kOk; });
    const bool useless = epoch <= over && oks < voters_[epoch];
    first = useless ? sent_.erase(first, last) : last;
  }
  std::erase_if(voters_, [&](const auto& entry) {
    const auto at = sent_.lower_bound({entry.first, 0, 0, 0});
    return at == sent_.end() || at->first.epoch != entry.first;
  });
}

// A rollback is right only if some block has no holder among the members.
void Observer::see_rollback(const EpochDecision& d, const History& before,
                            const std::map<SliceId, const ModelSlice*>& slices) {
  ++num_rollbacks_;
  if (before.suspect) {
    if (d.committed != before.verified)
      throw Violation(fmt::format("epoch {} goes back to step {}, verified is {}", d.number,
                                  d.committed, before.verified));
    return;
  }
  std::vector<const ModelSlice*> members;
  Step k = before.committed;
  for (const Member& m : d.members) {
    const auto at = slices.find(m.slice);
    if (at == slices.end() || at->second->config.life != m.life ||
        at->second->machine.decision().lineage != before.epoch->lineage)
      continue;
    members.push_back(at->second);
    k = std::max(k, at->second->machine.committed());
  }
  for (int64_t b = 0; b < layout_.num_blocks; ++b)
    if (std::none_of(members.begin(), members.end(),
                     [&](const ModelSlice* m) { return m->could_give(b, k); }))
      return;
  throw Violation(fmt::format("epoch {} rolls back although nothing is lost", d.number));
}

}  // namespace maniple::model

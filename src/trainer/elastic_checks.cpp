// The checks against silent data corruption and what follows from them (docs/corruption.md).
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "parallel/tensor_hash.h"
#include "trainer/elastic_slice_impl.h"

namespace maniple {

// --- Wrong results -------------------------------------------------------------------------------

std::optional<Canary> ElasticSlice::canary(Step step) const {
  const int64_t slices = mesh_.num_slices(), units = step_.num_units();
  std::vector<int64_t> watched;  // on probation
  for (int64_t m = 0; m < slices && slices > 1; ++m)
    if (decision_.watched[m] >= step) watched.push_back(m);
  if (!watched.empty()) return canary_by(watched[step % watched.size()], step, units, slices);
  return canary_of(step, units, slices, canary_interval(config_.sdc.canary_every, units, slices));
}

// Why the step should be executed again before it is committed; empty: it need not be.
std::string ElasticSlice::suspicion(const StepSums& sums) const {
  if (TrainStep::broken(sums, Check::kCanary)) return "two slices disagree about a unit";
  if (TrainStep::broken(sums, Check::kBlocks)) return "the holders of a block have different sums";
  if (TrainStep::broken(sums, Check::kSums)) return "gradients were not added up rightly";
  if (TrainStep::broken(sums, Check::kRows))
    return "rows for the experts did not arrive as they were sent";
  if (!config_.sdc.outliers || !outliers_.may_replay()) return {};
  if (!TrainStep::finite(sums)) return "a value is not finite";
  const StepOutcome out = step_.settle(sums);
  const Outliers::Numbers numbers = numbers_of(out);
  const auto far = outliers_.suspect(numbers);
  if (!far) return {};
  const double x = numbers[*far];
  if (*far == 0) return fmt::format("loss {:.6g} is an outlier", x);
  if (*far == 1) return fmt::format("gradient norm {:.6g} is an outlier", x);
  if (*far == 2) return fmt::format("RMS {:.6g} of the input of layer 0 is an outlier", x);
  return fmt::format("residual gain {:.6g} of layer {} is an outlier", x, *far - 3);
}

Outliers::Numbers ElasticSlice::numbers_of(const StepOutcome& outcome) {
  const std::vector<double>& rms = outcome.hidden_rms;
  Outliers::Numbers numbers = {outcome.loss, outcome.grad_norm, rms[0]};
  for (size_t l = 1; l < rms.size(); ++l) numbers.push_back(rms[l] / rms[l - 1]);
  return numbers;
}

// What a complete attempt is worth. All slices see the same sums, so they come to the same end; a
// suspicious step is executed until judge() knows why, and nothing of it is committed before.
// `mine`: the numbers of this rank before the exchange.
Health ElasticSlice::examine(const Order& order, const StepSums& mine, const StepSums& sums) {
  if (config_.sdc.state && TrainStep::broken(sums, Check::kState)) {
    check_copies();
    return Health::kPoisoned;
  }
  if (order.execution == 0) {
    executions_.clear();
    suspicion_ = suspicion(sums);
    if (suspicion_.empty()) return Health::kOk;
    note("suspicion", decision_.number, order.step);
  } else if (TrainStep::broken(sums, Check::kBlocks)) {
    return Health::kPoisoned;
  }
  executions_.resize(order.execution);
  trails_.resize(order.execution);
  trails_.push_back(std::move(trail_));
  if (!gather_execution(mine, static_cast<uint32_t>(rotation_))) return Health::kPoisoned;
  const Judgement judgement = judge(executions_);
  if (judgement.finding == Finding::kOpen) return Health::kSuspect;
  // Wrong again, in a place that the fingerprints do not reach: this execution is not the one.
  if (judgement.commits() && TrainStep::broken(sums, Check::kSums)) return Health::kPoisoned;
  std::vector<SliceId> slices;
  for (const Member& member : decision_.members) slices.push_back(member.slice);
  std::string text = suspicion_ + ": " + describe(judgement, slices);
  if (judgement.finding == Finding::kDefect) text += locate(judgement.blamed[0]);
  SdcFinding finding{order.step, to_string(judgement.finding), text, {}, {}, !judgement.commits()};
  for (const uint32_t member : judgement.blamed) {
    if (judgement.finding == Finding::kTransient) finding.strikes.push_back(slices[member]);
    if (judgement.finding == Finding::kDefect) finding.quarantine.push_back(slices[member]);
  }
  report_finding(finding, judgement.commits() ? std::vector<uint32_t>() : judgement.blamed);
  if (judgement.commits()) return Health::kOk;
  blame(judgement.blamed, text);
  return Health::kPoisoned;
}

// Adds the fingerprints of what all members have just computed, alike on all ranks.
bool ElasticSlice::gather_execution(const StepSums& mine, uint32_t rotation) {
  const Fingerprint f = step_.computed(mine);
  const at::Tensor words = words_of(f);
  at::Tensor slice = at::empty({mesh_.in_slice().size(), 2}, words.options());
  mesh_.in_slice().all_gather(words, slice);
  at::Tensor all = at::empty({mesh_.num_slices(), slice.size(0), 2}, words.options());
  if (!between([&] { mesh_.across().all_gather(slice, all); })) return false;
  Execution execution{rotation, {}};
  const auto members = static_cast<uint32_t>(mesh_.num_slices());
  for (uint32_t range = 0; range < members; ++range)
    execution.ranges.push_back(fingerprint_of(all[(range + members - rotation) % members], 1));
  executions_.push_back(std::move(execution));
  return true;
}

// Where a member that computes wrongly left the way of the others: the first point at which a trail
// of its differs from another's of the same units, and the positions that differ there.
std::string ElasticSlice::locate(uint32_t blamed) {
  const auto members = static_cast<uint32_t>(mesh_.num_slices());
  const auto executions = static_cast<int64_t>(trails_.size());
  int64_t most = 0;
  for (const auto& trail : trails_) most = std::max(most, static_cast<int64_t>(trail.size()));
  at::Tensor longest = at::zeros({members}, at::TensorOptions(at::kLong));
  const at::Tensor mine_longest = at::full({1}, most, longest.options());
  if (!between([&] { mesh_.across().all_gather(mine_longest, longest); })) return "";
  most = longest.max().item<int64_t>();
  at::Tensor mine = at::zeros({executions, most}, longest.options());
  for (int64_t e = 0; e < executions; ++e)
    for (size_t i = 0; i < trails_[e].size(); ++i)
      mine[e][static_cast<int64_t>(i)] = static_cast<int64_t>(trails_[e][i].hash);
  at::Tensor all = at::empty({members, executions, most}, longest.options());
  if (!between([&] { mesh_.across().all_gather(mine, all); })) return "";

  const auto hash = all.accessor<int64_t, 3>();
  int64_t first = most;
  for (uint32_t range = 0; range < members; ++range)
    for (int64_t a = 1; a < executions; ++a)
      for (int64_t b = 1; b < executions; ++b) {
        const uint32_t who = executions_[a].member_of(range), other = executions_[b].member_of(range);
        if (who != blamed || other == blamed) continue;
        int64_t i = 0;
        while (i < first && hash[who][a][i] == hash[other][b][i]) ++i;
        first = std::min(first, i);
      }
  at::Tensor firsts = at::empty({mesh_.in_slice().size()}, longest.options());
  mesh_.in_slice().all_gather(at::full({1}, first, longest.options()), firsts);
  const int64_t earliest = firsts.min().item<int64_t>();
  if (earliest == most) return "; inside the slice no message or layer differs";
  std::vector<int64_t> positions;
  for (int64_t p = 0; p < firsts.numel(); ++p)
    if (firsts[p].item<int64_t>() == earliest) positions.push_back(p);
  // Layer and kind of a point are the same in every trail of these units or of as many others.
  std::string where = "its end";
  for (const auto& trail : trails_)
    if (earliest < static_cast<int64_t>(trail.size())) where = describe(trail[earliest]);
  return fmt::format("; position {} differs first, at {}", fmt::join(positions, " and "), where);
}

// The first member that stays tells the coordinator. Those that leave are counted by their exit.
void ElasticSlice::report_finding(SdcFinding finding, const std::vector<uint32_t>& leavers) {
  uint32_t speaker = 0;
  while (speaker + 1 < decision_.members.size() &&
         std::find(leavers.begin(), leavers.end(), speaker) != leavers.end())
    ++speaker;
  if (leads() && static_cast<int64_t>(speaker) == mesh_.slice())
    control_->on(Judged{std::move(finding)});
}

// Ends this slice if it is among `members`; alike on all of its ranks.
void ElasticSlice::blame(const std::vector<uint32_t>& members, const std::string& why) {
  const auto me = static_cast<uint32_t>(mesh_.slice());
  if (std::find(members.begin(), members.end(), me) == members.end()) return;
  throw Error(ExitCode::kUnhealthy,
              fmt::format("slice {} leaves at step {}: {}", line_config_.slice, step_now_.load(), why));
}

// Copies of the state differ though each is what its holder wrote. Who is in the minority leaves;
// without a majority all who hold the copies do, and the job goes back to a checkpoint.
void ElasticSlice::check_copies() {
  const at::Tensor mine = at::tensor(state_hashes_, at::kLong);
  const int64_t members = mesh_.num_slices(), n = mine.numel();
  at::Tensor all = at::empty({members, n}, mine.options());
  if (!between([&] { mesh_.across().all_gather(mine, all); })) return;
  const auto hash = all.accessor<int64_t, 2>();
  at::Tensor wrong = at::zeros({members}, mine.options());
  for (int64_t i = 0; i < n; ++i) {
    std::map<int64_t, int64_t> votes;  // hash -> copies
    int64_t copies = 0;
    for (int64_t m = 0; m < members; ++m)
      if (i == 0 || hash[m][i] != 0) ++votes[hash[m][i]], ++copies;
    for (int64_t m = 0; m < members && votes.size() > 1; ++m)
      if ((i == 0 || hash[m][i] != 0) && 2 * votes[hash[m][i]] <= copies) wrong[m] += 1;
  }
  mesh_.in_slice().all_reduce(wrong);
  std::vector<uint32_t> blamed;
  for (int64_t m = 0; m < members; ++m)
    if (wrong[m].item<int64_t>() > 0) blamed.push_back(static_cast<uint32_t>(m));
  std::vector<SliceId> slices;
  for (const uint32_t m : blamed) slices.push_back(decision_.members[m].slice);
  const std::string text =
      fmt::format("copies of the state after step {} differ: {} {}", state_step_,
                  slices.size() == 1 ? "slice" : "slices", fmt::join(slices, " and "));
  report_finding({step_now_, "copies", text, {}, {}, false}, blamed);
  blame(blamed, text);
}

// --- Errors of memory ----------------------------------------------------------------------------

// What an update has read must be what the one before it wrote. A slice that finds a difference
// leaves before anybody has got anything of it; the others have good copies.
void ElasticSlice::check_seals() {
  leave_with(model_.optimizer->broken_seals(), state_step_ - 1);
}

// Hashes for the vote. Among three members the majority tells whose parameters have changed, among
// two each member has to know.
void ElasticSlice::check_parameters(StepSums& sums) {
  state_hashes_ = model_.optimizer->state_hashes();
  TrainStep::add_check(sums, Check::kState, model_.optimizer->state_check(state_hashes_));
  if (mesh_.num_slices() > 2) return;
  const bool good = static_cast<uint64_t>(state_hashes_[0]) == parameter_seal_;
  leave_with(good ? std::vector<std::string>() : std::vector<std::string>{"parameters"}, state_step_);
}

// Ends the slice if memory of any of its ranks has changed.
void ElasticSlice::leave_with(const std::vector<std::string>& broken, Step since) {
  if (all_agree(broken.empty())) return;
  if (broken.empty()) return (void)all_agree(true);  // another rank speaks and ends the slice
  throw Error(ExitCode::kUnhealthy,
              fmt::format("slice {} position {}: memory has changed since step {}: {}{}; the slice "
                          "leaves, the others go on with their copies",
                          line_config_.slice, mesh_.position(), since, broken.front(),
                          broken.size() > 1 ? fmt::format(" and {} more", broken.size() - 1) : ""));
}

}  // namespace maniple

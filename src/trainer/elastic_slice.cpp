#include "trainer/elastic_slice.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>
#include <torch/version.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <filesystem>

#include "checkpoint/folders.h"
#include "core/config_schema.h"
#include "core/files.h"
#include "elastic/replay.h"
#include "elastic/reshard.h"
#include "launch/clock.h"
#include "launch/slice_control.h"
#include "links/move_operation.h"
#include "metrics/jsonl_sink.h"
#include "optim/schedule.h"
#include "parallel/tcp_communicator.h"
#include "trainer/agreement.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/elastic_order.h"
#include "trainer/elastic_plan.h"
#include "trainer/fault_injector.h"
#include "trainer/make_objective.h"
#include "trainer/outliers.h"
#include "trainer/step_metrics.h"

namespace maniple {
namespace {

constexpr double kDeadline = 3600;  // of an operation between slices; waits end by STOP
constexpr uint32_t kRestoreAttempt = 1 << 20;

Fingerprint fingerprint_of(std::string_view bytes, uint64_t key) {
  Fingerprint f;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(4, bytes.size() - i));
    f.add_word(word, i / 4, key);
  }
  return f;
}
Fingerprint fingerprint_of(const at::Tensor& t, uint64_t key) {
  const at::Tensor host = t.contiguous();
  return fingerprint_of({static_cast<const char*>(host.const_data_ptr()), host.nbytes()}, key);
}

class ElasticSlice {
 public:
  ElasticSlice(const Config& config, TrainedModel& model, ProcessMesh& mesh, TrainStep& step,
               const RowSource& rows, const BlockLayout& layout, const RankControl::Config& line);
  ExitCode run();

 private:
  bool leads() const { return mesh_.position() == 0; }
  Fingerprint probe();
  void connect_control(const Fingerprint& build);
  std::string gather_addresses();

  // Any thread.
  void halt(EpochNumber epoch);
  void note_broken(EpochNumber epoch, SliceId peer);
  std::optional<SliceId> waits_for();

  Order next_order();
  void perform(const Order& order);
  void attempt(const Order& order);
  Health examine(const Order& order, const StepSums& mine, const StepSums& sums);
  std::string suspicion(const StepSums& sums) const;
  bool gather_execution(const StepSums& mine, uint32_t rotation);
  std::string locate(uint32_t blamed);
  void blame(const std::vector<uint32_t>& members, const std::string& why);
  void report_finding(SdcFinding finding, const std::vector<uint32_t>& blamed);
  void check_copies();
  std::optional<Canary> canary(Step step) const;
  void update(const DecisionRecord& record);
  void restore(const EpochDecision& decision, bool fresh);
  void send_prepare(const Prepare& prepare);

  bool halted();
  bool all_agree(bool good);
  bool between(const std::function<void()>& communicate);
  bool open_links(const EpochDecision& decision);
  void drop_links();
  void load_start(Step committed);
  bool copy_blocks(const EpochDecision& decision);
  bool share_small_state(const EpochDecision& decision, bool fresh);
  bool gather_parameters();
  void check_seals();
  void leave_with(const std::vector<std::string>& broken, Step since);
  void check_parameters(StepSums& sums);
  void save(bool wait);
  void report_part(bool wait);
  std::optional<MetricRow> make_row();
  std::optional<std::string> state_fingerprint();
  void progress(uint32_t unit = 0);
  void note(const char* event, EpochNumber epoch, Step step);

  const Config& config_;
  TrainedModel& model_;
  ProcessMesh& mesh_;
  TrainStep& step_;
  const RowSource& rows_;
  const RankControl::Config line_config_;
  const BlockLayout layout_;
  FaultInjector injector_;
  Progress link_progress_;
  LinkListener listener_;

  std::mutex mutex_;  // of what other threads touch
  std::condition_variable changed_;
  EpochNumber halted_ = 0;
  std::optional<SliceId> broken_;
  EpochDecision decision_;
  std::unique_ptr<LinkSet> links_;

  Step state_step_ = 0;       // of master, m, v and the router's state
  StepSums sums_;             // of step state_step_; not of use when that came from a checkpoint
  Step prepared_step_ = 0;    // of the attempt that was prepared last, whose sums wait for the vote
  StepSums prepared_;
  bool has_parameters_ = false;  // those of state_step_
  uint64_t parameter_seal_ = 0;  // of these, in an epoch of less than three members
  std::vector<int64_t> state_hashes_;
  Outliers outliers_;
  int64_t rotation_ = 0;                // of the units
  std::vector<Execution> executions_;   // of the suspicious step under way
  // Of this rank in the attempt under way, and in these executions; none of the first.
  std::vector<Trail::Point> trail_;
  std::vector<std::vector<Trail::Point>> trails_;
  std::string suspicion_;               // why it is one
  std::atomic<Step> step_now_ = 0;
  uint32_t attempt_now_ = 0;
  CheckpointWriter writer_;
  std::optional<CheckpointPart> part_;  // being written; the leader reports it

  std::unique_ptr<JsonlFile> journal_;     // the leader's: what this slice did, and when
  std::unique_ptr<SliceControl> control_;  // the leader's
  std::unique_ptr<RankControl> line_;      // the others'
};

ElasticSlice::ElasticSlice(const Config& config, TrainedModel& model, ProcessMesh& mesh,
                           TrainStep& step, const RowSource& rows, const BlockLayout& layout,
                           const RankControl::Config& line)
    : config_(config),
      model_(model),
      mesh_(mesh),
      step_(step),
      rows_(rows),
      line_config_(line),
      layout_(layout),
      injector_(config.faults, line.slice, line.life, mesh.position(), step, model),
      listener_(link_progress_, line.address, 0, line.token) {}

// --- Beginning -----------------------------------------------------------------------------------

// The program, its libraries, the machine, and the gradient of the first unit at the initial
// weights: slices that differ in any bit must not train together.
Fingerprint ElasticSlice::probe() {
  load_start(0);
  model_.optimizer->publish();
  int units = 0;
  (void)step_.compute(1, 0, [&] { return ++units == 1; });
  Fingerprint f;
  for (int g = 0; g < kNumGradGroups; ++g)
    if (const auto& group = model_.store.group(static_cast<GradGroup>(g)); group.used)
      f.combine(fingerprint_of(group.value, static_cast<uint64_t>(g)));
  f.combine(model_.optimizer->sums_fingerprint());
  f.combine(fingerprint_of(
      fmt::format("{} {} threads {}", TORCH_VERSION, at::get_cpu_capability(), config_.run.threads),
      7));
  f.combine(fingerprint_of(read_file("/proc/self/exe", "program"), 8));
  const at::Tensor mine = at::tensor(
      std::vector<int64_t>{static_cast<int64_t>(f.lo), static_cast<int64_t>(f.hi)}, at::kLong);
  at::Tensor all = at::empty({mesh_.in_slice().size(), 2}, mine.options());
  mesh_.in_slice().all_gather(mine, all);
  model_.optimizer->forget();
  has_parameters_ = false;
  return fingerprint_of(all, 9);
}

// "address:port" of each rank, in the order of positions.
std::string ElasticSlice::gather_addresses() {
  const at::Tensor mine = at::full({1}, static_cast<int64_t>(listener_.port()), at::kLong);
  at::Tensor all = at::empty({mesh_.in_slice().size()}, mine.options());
  mesh_.in_slice().all_gather(mine, all);
  std::string text;
  for (int64_t i = 0; i < all.numel(); ++i)
    text += fmt::format("{}{}:{}", i ? "," : "", line_config_.address, all[i].item<int64_t>());
  return text;
}

void ElasticSlice::connect_control(const Fingerprint& build) {
  const std::string addresses = gather_addresses();
  if (!leads()) {
    RankControl::Events events;
    events.message = [this](const Envelope& envelope) {
      const auto* stop = std::get_if<Stop>(&envelope.message);
      if (stop && !stop->after) halt(envelope.epoch);
    };
    events.waits_for = [this] { return waits_for(); };
    line_ = std::make_unique<RankControl>(line_config_, events);
  }
  mesh_.in_slice().barrier();
  if (leads()) {
    ensure_directory(config_.run.dir + "/elastic");
    journal_ = std::make_unique<JsonlFile>(
        fmt::format("{}/elastic/slice-{}.jsonl", config_.run.dir, line_config_.slice));
    note("register", 0, 0);
    MembershipConfig membership;
    membership.last_step = config_.train.steps;
    membership.registration = Register{
        build, hash_name(config_to_yaml(config_)), hash_name(line_config_.host), addresses};
    SliceControl::Events events;
    events.halt = [this](EpochNumber epoch) { halt(epoch); };
    events.waits_for = [this] { return waits_for(); };
    control_ = std::make_unique<SliceControl>(line_config_, membership, events);
  }
}

// --- Other threads -------------------------------------------------------------------------------

// One line of <run>/elastic/slice-N.jsonl, for those who examine a run. With the lock.
void ElasticSlice::note(const char* event, EpochNumber epoch, Step step) {
  if (journal_)
    journal_->write({{"us", monotonic_now()},
                     {"life", line_config_.life},
                     {"event", event},
                     {"epoch", epoch},
                     {"step", step}});
}

void ElasticSlice::halt(EpochNumber epoch) {
  std::lock_guard lock(mutex_);
  if (halted_ < epoch) note("halt", epoch, step_now_);
  halted_ = std::max(halted_, epoch);
  if (links_ && decision_.number <= epoch) links_->shutdown("STOP");
  changed_.notify_all();
}

void ElasticSlice::note_broken(EpochNumber epoch, SliceId peer) {
  if (control_) return control_->on(LinkBroken{epoch, peer});
  std::lock_guard lock(mutex_);
  if (epoch == decision_.number) broken_ = peer;
}

std::optional<SliceId> ElasticSlice::waits_for() {
  std::lock_guard lock(mutex_);
  const auto owing = links_ ? links_->waiting_for() : std::vector<int>();
  if (owing.empty()) return std::nullopt;
  return static_cast<SliceId>(owing.front());
}

// --- The training thread -------------------------------------------------------------------------

ExitCode ElasticSlice::run() {
  connect_control(probe());
  RankControl& line = control_ ? control_->line() : *line_;
  try {
    for (;;) {
      const Order order = next_order();
      if (order.kind != Order::Kind::kNothing) progress();
      if (order.kind == Order::Kind::kLeave) {
        line.leave(order.code);
        return static_cast<ExitCode>(order.code);
      }
      perform(order);
    }
  } catch (const Error& error) {
    line.leave(static_cast<int32_t>(error.code()), error.what());  // the job is to hear why
    throw;
  }
}

// The leader's next action, on every rank. A wait is interrupted now and then, so that no deadline
// of the transport passes while the job is paused.
Order ElasticSlice::next_order() {
  std::string bytes;
  while (leads() && bytes.empty()) {
    const auto action = control_->next(kSecond);
    if (action && std::holds_alternative<ToPeers>(*action)) {
      send_prepare(std::get<ToPeers>(*action).prepare);
      continue;
    }
    const Order order = action ? order_for(*action) : Order{};
    if (action && order.kind == Order::Kind::kNothing) continue;
    bytes = encode(order);
  }
  bytes = broadcast_text(bytes, mesh_.in_slice());
  Order order;
  MANIPLE_INVARIANT(decode(bytes, order), "an order of {} bytes", bytes.size());
  return order;
}

void ElasticSlice::perform(const Order& order) {
  switch (order.kind) {
    case Order::Kind::kAttempt: return attempt(order);
    case Order::Kind::kUpdate: return update(*order.record);
    case Order::Kind::kRestore: return restore(*order.decision, order.fresh);
    case Order::Kind::kDrop: return model_.optimizer->drop_unheld();
    case Order::Kind::kSave: return save(/*wait=*/true);
    default: return;
  }
}

void ElasticSlice::progress(uint32_t unit) {
  (control_ ? control_->line() : *line_).progress({step_now_, attempt_now_, unit, 0});
}

bool ElasticSlice::halted() {
  std::lock_guard lock(mutex_);
  return !links_ || halted_ >= decision_.number;
}

// Whether all ranks of the slice say so. The leader reports a link that broke at another rank.
bool ElasticSlice::all_agree(bool good) {
  int64_t broken = 0;
  {
    std::lock_guard lock(mutex_);
    if (broken_) broken = 1 + static_cast<int64_t>(*std::exchange(broken_, std::nullopt));
  }
  Communicator& slice = mesh_.in_slice();
  const at::Tensor mine = at::tensor(std::vector<int64_t>{good ? 0 : 1, broken}, at::kLong);
  at::Tensor all = at::empty({slice.size(), 2}, mine.options());
  slice.all_gather(mine, all);
  const int64_t* said = all.const_data_ptr<int64_t>();
  bool agreed = true;
  for (int r = 0; r < slice.size(); ++r) {
    agreed &= said[2 * r] == 0;
    if (leads() && said[2 * r + 1] > 0)
      control_->on(LinkBroken{decision_.number, static_cast<SliceId>(said[2 * r + 1] - 1)});
  }
  return agreed;
}

// Communication with other slices, which may be gone: true when it succeeded on all ranks of this
// slice.
bool ElasticSlice::between(const std::function<void()>& communicate) {
  bool good = !halted();
  try {
    if (good) communicate();
  } catch (const CommError&) {
    good = false;
  }
  progress();
  return all_agree(good);
}

void ElasticSlice::attempt(const Order& order) {
  step_now_ = order.step;
  attempt_now_ = order.attempt;
  const auto members = static_cast<uint32_t>(decision_.members.size());
  bool good = all_agree(!halted() && links_->broken().empty() && has_parameters_);
  StepSums mine, sums;
  if (good) {
    links_->begin_attempt(static_cast<uint64_t>(order.step), order.attempt);
    if (const int64_t rotation = rotation_of(order.execution, members); rotation != rotation_)
      step_.assign(rotation_ = rotation);
    uint32_t unit = 0;
    injector_.begin(order.step, order.attempt);
    const auto keep_on = [&] {
      progress(++unit);
      return good = all_agree(!halted());
    };
    if (order.execution > 0) mesh_.trail().start();
    mine = step_.compute(order.step, order.attempt, keep_on,
                         order.execution ? std::nullopt : canary(order.step));
    trail_ = mesh_.trail().stop();
    sums = mine;
    if (config_.sdc.state) check_parameters(sums);
    good = good && step_.exchange(sums, [this](const auto& c) { return between(c); }) &&
           !TrainStep::failed(sums);
  } else if (leads()) {
    // STOP is on its way; what cannot be computed need not be tried again and again.
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::microseconds(line_config_.timeouts.lease()),
                      [&] { return halted_ >= decision_.number; });
  }
  AttemptReport report;
  report.health = good ? examine(order, mine, sums) : Health::kPoisoned;
  if (report.health == Health::kOk) {
    prepared_ = sums;
    prepared_step_ = order.step;
    report.finite = TrainStep::finite(sums);
    report.tokens = sums[0];
  }
  if (leads()) control_->on(AttemptDone{order.epoch, order.step, order.attempt, report});
}

// --- Wrong results -------------------------------------------------------------------------------

std::optional<Canary> ElasticSlice::canary(Step step) const {
  const int64_t slices = mesh_.num_slices(), units = step_.num_units();
  return canary_of(step, units, slices, canary_interval(config_.sdc.canary_every, units, slices));
}

// Why the step should be executed again before it is committed; empty: it need not be.
std::string ElasticSlice::suspicion(const StepSums& sums) const {
  if (TrainStep::broken(sums, Check::kCanary)) return "two slices disagree about a unit";
  if (TrainStep::broken(sums, Check::kBlocks)) return "the holders of a block have different sums";
  if (!config_.sdc.outliers || !outliers_.may_replay()) return {};
  if (!TrainStep::finite(sums)) return "a value is not finite";
  const StepOutcome out = step_.settle(sums);
  if (outliers_.suspects({out.loss, out.grad_norm}))
    return fmt::format("loss {:.6g} and gradient norm {:.6g} are outliers", out.loss, out.grad_norm);
  return {};
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
  const at::Tensor words = at::tensor(
      std::vector<int64_t>{static_cast<int64_t>(f.lo), static_cast<int64_t>(f.hi)}, at::kLong);
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

// The leader sends its PREPARE to the others and hears theirs.
void ElasticSlice::send_prepare(const Prepare& prepare) {
  const std::string mine = encode(prepare);  // of fixed size
  const auto bytes = std::span(reinterpret_cast<const uint8_t*>(mine.data()), mine.size());
  std::vector<std::string> all(decision_.members.size(), std::string(mine.size(), '\0'));
  const auto me = static_cast<size_t>(links_->self());
  std::vector<std::span<const uint8_t>> send(all.size(), bytes);
  std::vector<std::span<uint8_t>> receive;
  for (std::string& one : all)
    receive.push_back({reinterpret_cast<uint8_t*>(one.data()), one.size()});
  send[me] = {};
  receive[me] = {};
  try {
    const auto operation = std::make_shared<MoveOperation>(links_->self(), send, receive);
    links_->start(operation);
    links_->wait(*operation, kDeadline);
  } catch (const CommError&) {
    return;  // STOP is on its way
  }
  for (size_t m = 0; m < all.size(); ++m) {
    Prepare theirs;
    if (m != me && decode(all[m], theirs)) control_->on(FromPeer{theirs});
  }
}

void ElasticSlice::update(const DecisionRecord& record) {
  MANIPLE_INVARIANT(prepared_step_ == record.step && state_step_ == record.step - 1,
                    "update of step {} with the sums of {} and the state of {}", record.step,
                    prepared_step_, state_step_);
  sums_ = prepared_;
  {
    std::lock_guard lock(mutex_);
    note("commit", decision_.number, record.step);
  }
  const StepOutcome outcome = step_.settle(sums_);
  outliers_.commit({outcome.loss, outcome.grad_norm}, !executions_.empty());
  executions_.clear();
  trails_.clear();
  step_.apply(outcome, learning_rate(config_.optim, record.step, config_.train.steps));
  state_step_ = record.step;
  check_seals();
  has_parameters_ = gather_parameters();
  const std::optional<MetricRow> row = has_parameters_ ? make_row() : std::nullopt;
  const int64_t every = config_.checkpoint.every;
  const bool last = record.step == config_.train.steps;
  report_part(/*wait=*/false);
  if (row && every > 0 && (record.step % every == 0 || last)) save(/*wait=*/last);
  // Without a row the epoch is about to end, and Restore makes it.
  if (leads() && row) control_->on(UpdateDone{*row});
}

bool ElasticSlice::gather_parameters() {
  if (!between([&] { model_.optimizer->publish_across(); })) return false;
  model_.optimizer->publish_in_slice();
  if (config_.sdc.state && mesh_.num_slices() < 3)
    parameter_seal_ = model_.optimizer->parameter_hash();
  return true;
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

// --- From one epoch to the next ------------------------------------------------------------------

void ElasticSlice::restore(const EpochDecision& decision, bool fresh) {
  drop_links();
  {
    std::lock_guard lock(mutex_);
    broken_.reset();
    decision_ = decision;
    note("restore", decision.number, decision.committed);
  }
  has_parameters_ = false;
  step_now_ = decision.committed;
  const bool is_linked = open_links(decision);
  progress();
  if (!is_linked) return;  // STOP has come
  links_->begin_attempt(static_cast<uint64_t>(decision.committed), kRestoreAttempt);
  mesh_.set_across(std::make_unique<TcpCommunicator>(*links_, TcpOptions{.deadline_s = kDeadline}));
  step_.assign(rotation_ = 0);
  executions_.clear();
  if (fresh || decision.loads_checkpoint()) {
    model_.optimizer->forget();
    outliers_ = {};
    prepared_step_ = 0;
  }
  model_.optimizer->set_holders(holders(layout_, decision.members));
  progress();

  std::string trouble;
  if (decision.loads_checkpoint()) {
    try {
      agree(mesh_.in_slice(), [&] { load_start(decision.committed); });
    } catch (const AgreedError& error) {
      trouble = error.what();
    }
  }
  bool good = trouble.empty() && copy_blocks(decision) && share_small_state(decision, fresh);
  outliers_.quiet_for(5);
  has_parameters_ = good && gather_parameters();
  good = good && has_parameters_;
  if (config_.sdc.state) model_.optimizer->seal();
  std::optional<MetricRow> row;
  if (good && decision.record) {
    row = make_row();
    good = row.has_value();
  }
  {
    std::lock_guard lock(mutex_);
    if (good) note("restored", decision.number, decision.committed);
  }
  if (leads() && (good || !trouble.empty()))
    control_->on(RestoreDone{decision.number, good, trouble, row});
}

// A link set that stands, or nothing after STOP. Others may come to this epoch later.
bool ElasticSlice::open_links(const EpochDecision& d) {
  LinkConfig config;
  config.token = line_config_.token;
  config.incarnation = d.incarnation;
  config.epoch = d.number;
  config.position = static_cast<int>(mesh_.position());
  config.build = d.build.hex();
  config.self = d.index_of(line_config_.slice);
  config.connect_s = static_cast<double>(line_config_.timeouts.connect()) / kSecond;
  config.on_broken = [this, epoch = d.number](int slice, const std::string&) {
    note_broken(epoch, static_cast<SliceId>(slice));
  };
  for (size_t m = 0; m < d.members.size(); ++m) {
    std::string address = d.addresses[m];
    for (int64_t p = 0; p < mesh_.position(); ++p) address.erase(0, address.find(',') + 1);
    address = address.substr(0, address.find(','));
    const size_t colon = address.rfind(':');
    config.members.push_back({static_cast<int>(d.members[m].slice), address.substr(0, colon),
                              static_cast<uint16_t>(std::stoi(address.substr(colon + 1)))});
  }
  for (bool go_on = true; go_on;) {
    bool linked = false;
    auto links = std::make_unique<LinkSet>(link_progress_, listener_, config);
    LinkSet* open = links.get();
    {
      std::lock_guard lock(mutex_);
      links_ = std::move(links);
      if (halted_ >= d.number) links_->shutdown("STOP");
    }
    try {
      open->connect();
      linked = true;
    } catch (const CommError&) {
      // Not everybody is there yet, or STOP comes.
    }
    if (all_agree(linked)) return true;
    go_on = all_agree(!halted());
    drop_links();
  }
  return false;
}

// Ended without the lock: the links' thread may be about to take it.
void ElasticSlice::drop_links() {
  std::unique_ptr<LinkSet> links;
  std::lock_guard lock(mutex_);
  links.swap(links_);
}

// The state after step `committed`, from a checkpoint, from given weights or from random ones.
void ElasticSlice::load_start(Step committed) {
  for (MoeLayer* layer : model_.moe_layers) layer->router().reset();
  step_.applied_steps = 0;
  if (committed > 0) {
    const CheckpointInfo checkpoint =
        reopen_checkpoint(config_.run.dir + "/checkpoints/" + step_folder_name(committed));
    load_checkpoint(model_, checkpoint, true);
    step_.applied_steps = checkpoint.meta.at("applied_steps").get<int64_t>();
  } else {
    set_initial_weights(model_, config_);
  }
  state_step_ = committed;
}

// Every block that a member lacks, from one that has it.
bool ElasticSlice::copy_blocks(const EpochDecision& d) {
  const auto me = static_cast<int32_t>(d.index_of(line_config_.slice));
  const size_t members = d.members.size();
  std::vector<std::vector<int64_t>> give(members), take(members);
  for (const BlockCopy& copy : plan_copies(layout_, d)) {
    if (copy.from == me) give[copy.to].push_back(copy.block);
    if (copy.to == me) take[copy.from].push_back(copy.block);
  }
  ShardedAdamw& optimizer = *model_.optimizer;
  std::vector<at::Tensor> parts;
  std::vector<int64_t> sends, receives;
  for (size_t m = 0; m < members; ++m) {
    parts.push_back(optimizer.pack(give[m]));
    sends.push_back(parts.back().numel());
    receives.push_back(optimizer.packed_bytes(take[m]));
  }
  int64_t total = 0;
  for (const int64_t n : receives) total += n;
  at::Tensor received = at::empty({total}, at::kByte);
  if (!between([&] { mesh_.across().all_to_all_v(at::cat(parts), sends, received, receives); }))
    return false;
  int64_t from = 0;
  for (size_t m = 0; m < members; ++m) {
    optimizer.unpack(take[m], received.narrow(0, from, receives[m]));
    from += receives[m];
  }
  optimizer.refresh_values();
  return true;
}

// What every rank has alike, from the lowest member that has it: applied steps, the sums of the
// last step, the router's state.
bool ElasticSlice::share_small_state(const EpochDecision& d, bool fresh) {
  if (d.loads_checkpoint()) return true;
  std::vector<int64_t> numbers = {step_.applied_steps};
  sums_.resize(step_.num_sums());
  numbers.insert(numbers.end(), sums_.begin(), sums_.end());
  const std::vector<double> history = outliers_.state();
  for (const double x : history) numbers.push_back(std::bit_cast<int64_t>(x));
  std::vector<at::Tensor> parts = {at::tensor(numbers, at::kLong).view(at::kByte)};
  for (MoeLayer* layer : model_.moe_layers)
    for (const at::Tensor* t : {&layer->router().bias, &layer->router().previous_f})
      parts.push_back(t->view(at::kByte));
  at::Tensor bytes = at::cat(parts);
  const auto giver = std::find_if(d.holds.begin(), d.holds.end(),
                                  [](const auto& held) { return !held.empty(); });
  const auto root = static_cast<int>(giver - d.holds.begin());
  if (!between([&] { mesh_.across().broadcast(bytes, root); })) return false;
  if (!fresh) return true;
  int64_t from = static_cast<int64_t>(parts[0].nbytes());
  const at::Tensor whole = bytes.narrow(0, 0, from).clone();
  const auto* n = reinterpret_cast<const int64_t*>(whole.const_data_ptr());
  step_.applied_steps = n[0];
  std::copy(n + 1, n + 1 + sums_.size(), sums_.begin());
  std::vector<double> history_there;
  for (size_t i = 0; i < history.size(); ++i)
    history_there.push_back(std::bit_cast<double>(n[1 + sums_.size() + i]));
  outliers_.set_state(history_there);
  for (MoeLayer* layer : model_.moe_layers)
    for (const at::Tensor* t : {&layer->router().bias, &layer->router().previous_f}) {
      const auto size = static_cast<int64_t>(t->nbytes());
      t->view(at::kByte).copy_(bytes.narrow(0, from, size));
      from += size;
    }
  state_step_ = d.committed;
  return true;
}

// --- Checkpoints ---------------------------------------------------------------------------------

// Begins to write this rank's part of a checkpoint of state_step_; all members of the epoch do. The
// coordinator publishes it when all parts are there and the step is stable.
void ElasticSlice::save(bool wait) {
  report_part(/*wait=*/true);
  const auto position = static_cast<int>(mesh_.position());
  const auto size = static_cast<int>(mesh_.in_slice().size());
  const int writers = size * static_cast<int>(mesh_.num_slices());
  const int writer = static_cast<int>(mesh_.slice()) * size + position;
  const std::string attempt = fmt::format("epoch-{}-{}", decision_.incarnation, decision_.number);
  const nlohmann::json manifest = {
      {"attempt", attempt},
      {"num_writers", writers},
      {"meta", checkpoint_meta(config_, state_step_, step_.applied_steps, rows_)}};
  writer_.start(model_, writer == 0,
                [=, step = state_step_, root = config_.run.dir + "/checkpoints"](
                    const std::vector<TensorSlice>& slices) {
                  write_checkpoint_part(root, step, writer, writers, attempt, slices);
                });
  part_ = CheckpointPart{state_step_, decision_.number, manifest.dump()};
  if (wait) report_part(true);
}

// Tells the coordinator of a part that all ranks of this slice have written. One that failed is
// given up: training goes on, and the checkpoint before stays the newest.
void ElasticSlice::report_part(bool wait) {
  if (!part_ || !(wait || all_agree(writer_.done()))) return;
  bool good = true;
  try {
    writer_.finish();
  } catch (const std::exception& error) {
    good = false;
    fmt::print(stderr, "warning: no checkpoint of step {}: {}\n", part_->step, error.what());
    std::fflush(stderr);
  }
  if (all_agree(good) && leads()) control_->on(PartWritten{*part_});
  part_.reset();
}

// --- Rows ----------------------------------------------------------------------------------------

// The metric row of step state_step_: the same bytes in every slice, empty when the step is not
// reported. Nothing when other slices were needed for it and did not answer.
std::optional<MetricRow> ElasticSlice::make_row() {
  const Step step = state_step_;
  const MetricsConfig& m = config_.metrics;
  MetricRow row{step, {}};
  const bool with_fingerprint = m.fingerprint_every > 0 && step % m.fingerprint_every == 0;
  const bool last = step == config_.train.steps;
  if (step % m.every == 0 || with_fingerprint || last) {
    StepReport report =
        report_outcome(step, learning_rate(config_.optim, step, config_.train.steps),
                       step_.settle(sums_), model_, mesh_.shape());
    if (with_fingerprint) {
      report.fingerprint = state_fingerprint();
      if (!report.fingerprint) return std::nullopt;
    }
    nlohmann::ordered_json json = to_json(report);
    json.erase("tokens_per_s");  // the writer of the rows knows the time
    row.bytes = to_json_line(json);
  }
  const EvalConfig& e = config_.eval;
  const int64_t n = std::min(e.rows, rows_.num_rows(Split::kValidation));
  if (e.every > 0 && (step % e.every == 0 || last) && n > 0) {
    double loss = 0;
    if (!step_.evaluate(n, loss, [this](const auto& c) { return between(c); })) return std::nullopt;
    nlohmann::ordered_json record = {{"step", step}, {"eval_loss", loss}};
    const double bytes = rows_.bytes_per_token();
    if (bytes > 0) record["eval_bits_per_byte"] = loss / std::log(2.0) / bytes;
    row.bytes += (row.bytes.empty() ? "" : "\n") + to_json_line(record);
  }
  return row;
}

std::optional<std::string> ElasticSlice::state_fingerprint() {
  const bool first = mesh_.slice() == 0 && leads();
  const Fingerprint f = fingerprint_of_state(model_, first);
  const at::Tensor mine = at::tensor(
      std::vector<int64_t>{static_cast<int64_t>(f.lo), static_cast<int64_t>(f.hi)}, at::kLong);
  at::Tensor slice = at::empty({mesh_.in_slice().size(), 2}, mine.options());
  mesh_.in_slice().all_gather(mine, slice);
  at::Tensor all = at::empty({mesh_.num_slices(), slice.size(0), 2}, mine.options());
  if (!between([&] { mesh_.across().all_gather(slice, all); })) return std::nullopt;
  Fingerprint whole;
  const int64_t* words = all.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < all.numel(); i += 2)
    whole.combine({static_cast<uint64_t>(words[i]), static_cast<uint64_t>(words[i + 1])});
  return whole.hex();
}

}  // namespace

ExitCode train_slice(const Config& config, std::unique_ptr<Communicator> slice,
                     const RankControl::Config& line) {
  ModelConfig model_config;
  MeshShape shape;
  std::unique_ptr<RowSource> rows;
  agree(*slice, [&] {
    model_config = resolve_model(config.model);
    shape = slice_shape(config, slice->size());
    rows = open_row_source(config.data, config.batch.seq_len, model_config.vocab_size,
                           config.run.seed);
    rows = attach_targets(config, model_config, std::move(rows));
  });
  ProcessMesh mesh(shape, std::move(slice));
  std::unique_ptr<TrainedModel> model;
  agree(mesh.world(), [&] { model = std::make_unique<TrainedModel>(config, model_config, mesh); });
  TrainStep step(config, *model, mesh, *rows, make_objective(config, model_config, mesh));
  const BlockLayout layout{model->optimizer->num_blocks(), redundancy_of(config)};
  return ElasticSlice(config, *model, mesh, step, *rows, layout, line).run();
}

}  // namespace maniple

#include "trainer/elastic_slice.h"

#include <torch/version.h>

#include <algorithm>
#include <limits>

#include "core/config_schema.h"
#include "core/files.h"
#include "launch/clock.h"
#include "links/move_operation.h"
#include "optim/schedule.h"
#include "parallel/device.h"
#include "parallel/tensor_hash.h"
#include "trainer/agreement.h"
#include "trainer/elastic_plan.h"
#include "trainer/elastic_slice_impl.h"
#include "trainer/make_objective.h"

namespace maniple {

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
// weights: slices that differ in any bit must not train together. A slice that was quarantined
// computes that unit again and again; its build tells the coordinator whether it is the others' too.
Fingerprint ElasticSlice::probe() {
  load_start(0);
  model_.optimizer->publish();
  Fingerprint f = probe_unit();
  for (int64_t n = 1; line_config_.burn_in && n < config_.sdc.burn_in; ++n) {
    injector_.begin(std::numeric_limits<Step>::max(), 0);
    if (probe_unit() != f)
      throw Error(ExitCode::kUnhealthy,
                  fmt::format("slice {} was quarantined and fails its burn-in: execution {} of the probe "
                              "unit differs from the first; replace or repair the device",
                              line_config_.slice, n + 1));
  }
  for (int g = 0; g < kNumGradGroups; ++g)
    if (const auto& group = model_.store.group(static_cast<GradGroup>(g)); group.used)
      f.combine(fingerprint_of(group.value, static_cast<uint64_t>(g)));
  f.combine(fingerprint_of(fmt::format("{} {} threads {}", TORCH_VERSION,
                                       device_kind(mesh_.device()), config_.run.threads),
                           7));
  f.combine(fingerprint_of(read_file("/proc/self/exe", "program"), 8));
  model_.optimizer->forget();
  has_parameters_ = false;
  return over_slice(f);
}

// Alike on all ranks of the slice.
Fingerprint ElasticSlice::probe_unit() {
  int units = 0;
  (void)step_.compute(1, 0, [&] { return ++units == 1; });
  return over_slice(model_.optimizer->sums_fingerprint());
}

Fingerprint ElasticSlice::over_slice(const Fingerprint& mine) {
  const at::Tensor words = words_of(mine);
  at::Tensor all = at::empty({mesh_.in_slice().size(), 2}, words.options());
  mesh_.in_slice().all_gather(words, all);
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

// For the notice of stragglers: the median of the last steps.
void ElasticSlice::note_pace(Time unit) {
  constexpr size_t kSteps = 9;
  unit_times_.push_back(unit);
  if (unit_times_.size() > kSteps) unit_times_.erase(unit_times_.begin());
  std::vector<Time> sorted = unit_times_;
  std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
  (control_ ? control_->line() : *line_).pace(sorted[sorted.size() / 2]);
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
    const Time began = monotonic_now();
    const auto extra = order.execution ? std::nullopt : canary(order.step);
    mine = step_.compute(order.step, order.attempt, keep_on, extra);
    unit += extra && extra->second == mesh_.slice();
    if (good && unit > 0) note_pace((monotonic_now() - began) / unit);
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
  outliers_.commit(numbers_of(outcome), !executions_.empty());
  executions_.clear();
  trails_.clear();
  step_.apply(outcome, learning_rate(config_.optim, record.step, config_.train.steps));
  state_step_ = record.step;
  check_seals();
  has_parameters_ = gather_parameters();
  note_spent();
  const std::optional<MetricRow> row = has_parameters_ ? make_row() : std::nullopt;
  const int64_t every = config_.checkpoint.every;
  const bool last = record.step == config_.train.steps;
  report_part(/*wait=*/false);
  if (row && every > 0 && (record.step % every == 0 || last)) save(/*wait=*/last);
  // Without a row the epoch is about to end, and Restore makes it.
  if (leads() && row) control_->on(UpdateDone{*row});
}

bool ElasticSlice::gather_parameters() {
  step_.clock().enter(Phase::kPublish);
  if (!between([&] { model_.optimizer->publish_across(); })) return false;
  model_.optimizer->publish_in_slice();
  if (config_.sdc.state && mesh_.num_slices() < 3)
    parameter_seal_ = model_.optimizer->parameter_hash();
  return true;
}

ExitCode train_slice(const Config& config, std::unique_ptr<Communicator> slice,
                     const RankControl::Config& line) {
  ModelConfig model_config;
  MeshShape shape;
  std::unique_ptr<RowSource> rows;
  at::Device device = at::kCPU;
  agree(*slice, [&] {
    model_config = resolve_model(config.model);
    shape = slice_shape(config, slice->size());
    // Slices of one host have different GPUs while there are enough.
    device = find_device(config.run.device,
                         static_cast<int>(line.slice * shape.slice_size) + rank_on_host());
    rows = open_row_source(config.data, config.batch.seq_len, model_config.vocab_size,
                           config.run.seed);
    rows = attach_targets(config, model_config, std::move(rows));
  });
  ProcessMesh mesh(shape, std::move(slice), device);
  std::unique_ptr<TrainedModel> model;
  agree(mesh.world(), [&] { model = std::make_unique<TrainedModel>(config, model_config, mesh); });
  TrainStep step(config, *model, mesh, *rows, make_objective(config, model_config, mesh));
  const BlockLayout layout{model->optimizer->num_blocks(), redundancy_of(config)};
  return ElasticSlice(config, *model, mesh, step, *rows, layout, line).run();
}

}  // namespace maniple

#include "trainer/elastic_slice.h"

#include <ATen/Parallel.h>
#include <torch/version.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>

#include "checkpoint/folders.h"
#include "core/config_schema.h"
#include "core/files.h"
#include "elastic/reshard.h"
#include "launch/clock.h"
#include "launch/slice_control.h"
#include "links/move_operation.h"
#include "metrics/jsonl_sink.h"
#include "optim/schedule.h"
#include "parallel/tcp_communicator.h"
#include "trainer/agreement.h"
#include "trainer/bit_flips.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/elastic_order.h"
#include "trainer/elastic_plan.h"
#include "trainer/make_objective.h"
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
  void seal();
  void check_seals();
  void inject(Step step);
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
  const std::vector<BitFlip> flips_;
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
      flips_(parse_flips(config.faults.flip)),
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
  bool good = all_agree(!halted() && links_->broken().empty() && has_parameters_);
  StepSums sums;
  if (good) {
    links_->begin_attempt(static_cast<uint64_t>(order.step), order.attempt);
    uint32_t unit = 0;
    inject(order.step);
    sums = step_.compute(order.step, order.attempt, [&] {
      progress(++unit);
      return good = all_agree(!halted());
    });
    good = good && step_.exchange(sums, [this](const auto& c) { return between(c); }) &&
           !TrainStep::failed(sums);
    check_seals();
  } else if (leads()) {
    // STOP is on its way; what cannot be computed need not be tried again and again.
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::microseconds(line_config_.timeouts.lease()),
                      [&] { return halted_ >= decision_.number; });
  }
  AttemptReport report;
  report.health = good ? Health::kOk : Health::kPoisoned;
  if (good) {
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
  step_.apply(step_.settle(sums_), learning_rate(config_.optim, record.step, config_.train.steps));
  state_step_ = record.step;
  has_parameters_ = gather_parameters();
  seal();
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
  return true;
}

// --- Errors of memory ----------------------------------------------------------------------------

void ElasticSlice::seal() {
  if (config_.sdc.state) model_.optimizer->seal();
}

// Before the slice says PREPARE: what it computed with and what it would update must be what it wrote
// in the step before. A slice that finds a difference leaves, so nothing of it is committed; the
// others have good copies.
void ElasticSlice::check_seals() {
  if (!config_.sdc.state) return;
  const std::vector<std::string> broken = model_.optimizer->broken_seals();
  if (all_agree(broken.empty())) return;
  if (broken.empty()) return (void)all_agree(true);  // another rank speaks and ends the slice
  throw Error(ExitCode::kUnhealthy,
              fmt::format("slice {} position {}: memory has changed since step {}: {}{}; the slice "
                          "leaves, the others go on with their copies",
                          line_config_.slice, mesh_.position(), state_step_, broken.front(),
                          broken.size() > 1 ? fmt::format(" and {} more", broken.size() - 1) : ""));
}

void ElasticSlice::inject(Step step) {
  for (const BitFlip& flip : flips_)
    if (flip.slice == line_config_.slice && flip.position == mesh_.position() && flip.step == step &&
        line_config_.life == 1 && attempt_now_ == 0)
      model_.optimizer->flip(flip.what, flip.element, flip.bit);
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
  step_.assign();
  if (fresh || decision.loads_checkpoint()) {
    model_.optimizer->forget();
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
  has_parameters_ = good && gather_parameters();
  good = good && has_parameters_;
  seal();
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

#include "launch/agent.h"

#include <sys/random.h>

#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/random.h"
#include "launch/clock.h"
#include "launch/job_token.h"

namespace maniple {
namespace {

uint64_t random_id() {
  uint64_t id = 0;
  if (::getrandom(&id, sizeof id, 0) != sizeof id) throw IoError("cannot get a random number");
  return id | 1;
}

uint64_t size_of(const std::string& file) {
  std::error_code none;
  const auto size = std::filesystem::file_size(file, none);
  return none ? 0 : size;
}

// The last error that the program has printed into its output behind `begin`; empty for none.
std::string last_error(const std::string& output, uint64_t begin) {
  constexpr uint64_t kMostRead = uint64_t{1} << 18;
  constexpr size_t kLongest = 1000;  // of the message
  constexpr std::string_view kMark = "maniple: ";
  const uint64_t size = size_of(output);
  std::ifstream file(output, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(std::max(begin, size - std::min(size, kMostRead))));
  std::string error;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(kMark)) error = line.substr(kMark.size(), kLongest);
  return error;
}

}  // namespace

std::string shared_memory_folder(const std::string& folder, SliceId slice) {
  return fmt::format("/dev/shm/maniple-{:016x}-{}", hash_name(folder), slice);
}

Agent::Agent(const AgentConfig& config)
    : config_(config),
      id_(random_id()),
      folder_(config.folder),
      shared_memory_(shared_memory_folder(config.folder.empty() ? folder_.path() : config.folder, config.slice)),
      children_(context_, SIGCHLD),
      stop_signals_(context_, SIGTERM, SIGINT),
      timer_(context_),
      launcher_(context_) {
  become_subreaper();
  write_job_token(folder_.path() + "/token", config_.token);
  ControlServer::Events ranks;
  ranks.judge = [this](const ControlHello& hello) -> std::string {
    if (hello.role != Role::kRank) return "this is an agent: ranks only";
    if (hello.slice != config_.slice || hello.life != life_ || ending_ || !tree_.alive())
      return fmt::format("this agent runs life {} of slice {}", life_, config_.slice);
    if (hello.position >= config_.ranks || ranks_.contains(hello.position))
      return fmt::format("there is no place for a rank {} among {}", hello.position, config_.ranks);
    return {};
  };
  ranks.arrived = [this](const ControlHello& hello, std::shared_ptr<Connection> connection) {
    rank_arrived(hello, connection);
  };
  server_ = std::make_unique<ControlServer>(context_, "unix:" + folder_.path() + "/agent",
                                            config_.token, ranks);
  ControlHello hello{config_.token, Role::kAgent, config_.slice, config_.start, 0};
  ControlClient::Events events;
  events.connected = [this] {
    silent_ticks_ = 0;
    say_hello();
    to_leader(CoordinatorReached{});
  };
  events.frame = [this](std::string_view payload) { hear_coordinator(payload); };
  events.lost = [this](const std::string& reason) {
    if (!reason.starts_with("refused")) return;
    fmt::print(stderr, "agent of slice {}: {}\n", config_.slice, reason);
    result_ = static_cast<int>(ExitCode::kComm);
  };
  coordinator_ =
      std::make_shared<ControlClient>(context_, config_.coordinator, hello, config_.timeouts.beat(),
                                      config_.timeouts.connect(), events);
}

Agent::~Agent() {
  coordinator_->close();
  for (const auto& [position, rank] : ranks_) rank.connection->close();
  tree_.end();
  std::error_code ignored;
  std::filesystem::remove_all(shared_memory_, ignored);
}

int Agent::run() {
  schedule_first();
  watch_children();
  stop_signals_.async_wait([this](const asio::error_code& error, int) {
    if (!error) result_ = static_cast<int>(ExitCode::kPreempted);
  });
  watch_launcher();
  coordinator_->start();
  tick();
  while (!result_) context_.run_one();
  return *result_;
}

void Agent::watch_launcher() {
  if (!launcher_.is_open()) {
    asio::error_code no_pipe;
    if (config_.launcher >= 0) launcher_.assign(config_.launcher, no_pipe);
    if (config_.launcher < 0 || no_pipe) return;
  }
  launcher_.async_read_some(asio::buffer(&from_launcher_, 1),
                            [this](const asio::error_code& error, size_t) {
                              if (!error) return watch_launcher();
                              result_ = static_cast<int>(ExitCode::kPreempted);
                            });
}

void Agent::watch_children() {
  children_.async_wait([this](const asio::error_code& error, int) {
    if (error) return;
    reap();
    watch_children();
  });
}

void Agent::tick() {
  const Time now = monotonic_now();
  reap();
  if (kill_at_ != 0 && now >= kill_at_) end_slice("it was to end and did not");
  if (!tree_.alive() && now >= hello_at_) say_hello();
  watch_coordinator();
  to_ranks(AgentBeat{});
  timer_.expires_after(std::chrono::microseconds(config_.timeouts.beat()));
  timer_.async_wait([this](const asio::error_code& stopped) {
    if (!stopped) tick();
  });
}

// A cut network gives no error for a long time, only silence.
void Agent::watch_coordinator() {
  const auto ticks = [beat = config_.timeouts.beat()](Time time) { return time / beat; };
  const Time orphan = ticks(config_.timeouts.orphan());
  if (++ticks_ % std::max<Time>(1, ticks(config_.timeouts.suspicion() / 2)) == 0)
    coordinator_->send(encode_pulse());
  ++silent_ticks_;
  const uint64_t before = std::exchange(progress_, progress());
  idle_ticks_ = progress_ == before ? idle_ticks_ + 1 : 0;
  if (silent_ticks_ <= orphan) return;
  coordinator_->renew("nothing was heard of it");
  if (idle_ticks_ > orphan && tree_.alive()) {
    const std::string reason = "neither a coordinator nor another slice is heard";
    if (!left_with_) left_with_ = Exited{static_cast<int32_t>(ExitCode::kComm), reason};
    end_slice(reason);
  }
  if (!tree_.alive() && silent_ticks_ > ticks(config_.timeouts.transport()))
    result_ = static_cast<int>(ExitCode::kComm);
}

// Grows whenever one of the ranks gets on.
uint64_t Agent::progress() const {
  uint64_t count = 0;
  for (const auto& [position, rank] : ranks_)
    if (rank.beat) count += rank.beat->progress.count;
  return count;
}

// --- The coordinator's orders --------------------------------------------------------------------

void Agent::hear_coordinator(std::string_view payload) {
  silent_ticks_ = 0;
  if (is_pulse(payload)) return;
  const auto envelope = decode_message(payload);
  if (!envelope || envelope->slice != config_.slice) return;
  if (const auto* order = std::get_if<Launch>(&envelope->message))
    return launch(envelope->life, order->burn_in);
  if (std::holds_alternative<Verdict>(envelope->message)) return take_verdict(*envelope);
  if (envelope->life != life_) return;
  if (std::holds_alternative<Kill>(envelope->message)) return end_slice("ordered");
  if (std::holds_alternative<Stop>(envelope->message)) return to_ranks(*envelope);
  to_leader(*envelope);
}

void Agent::launch(Life life, bool burn_in) {
  if (life <= life_ || (next_life_ && life <= *next_life_)) return;
  next_life_ = life;
  burn_in_ = burn_in;
  if (tree_.alive())
    end_slice("a later life begins");
  else
    start_slice();
}

void Agent::start_slice() {
  life_ = *next_life_;
  next_life_.reset();
  ranks_.clear();
  left_with_.reset();
  ending_ = false;
  kill_at_ = 0;
  output_begin_ = size_of(config_.output);
  const std::string temporary = folder_.path() + "/tmp";
  std::error_code ignored;
  std::filesystem::remove_all(temporary, ignored);
  std::filesystem::create_directory(temporary, ignored);
  // Open MPI's segments of killed ranks would stay where others' are.
  std::filesystem::remove_all(shared_memory_, ignored);
  std::filesystem::create_directory(shared_memory_, ignored);
  std::filesystem::permissions(shared_memory_, std::filesystem::perms::owner_all, ignored);
  ProcessCommand command;
  command.arguments = config_.command;
  command.environment = config_.environment;
  command.output = config_.output;
  command.environment.insert(command.environment.end(),
                             {{kAgentVariable, "unix:" + folder_.path() + "/agent"},
                              {kTokenVariable, folder_.path() + "/token"},
                              {kSliceVariable, fmt::format("{}", config_.slice)},
                              {kBurnInVariable, burn_in_ ? "1" : "0"},
                              {kHostVariable, config_.host},
                              {kAddressVariable, config_.address},
                              {kLifeVariable, fmt::format("{}", life_)},
                              {kLeaseVariable, fmt::format("{}", config_.timeouts.lease())},
                              {"TMPDIR", temporary},
                              {"OMPI_MCA_btl_vader_backing_directory",
                               std::filesystem::exists(shared_memory_) ? shared_memory_ : temporary}});
  try {
    tree_.start(command);
  } catch (const IoError& error) {
    fmt::print(stderr, "agent of slice {}: {}\n", config_.slice, error.what());
    return to_coordinator(Exited{static_cast<int32_t>(ExitCode::kNoInput), error.what()});
  }
  say_hello();
}

void Agent::end_slice(const std::string& reason) {
  if (!tree_.alive()) return;
  if (!ending_)
    fmt::print(stderr, "agent of slice {}: ends life {}: {}\n", config_.slice, life_, reason);
  if (!std::exchange(ending_, true)) to_coordinator(Dying{reason});
  tree_.kill();
}

void Agent::reap() {
  if (const auto code = tree_.reap()) return slice_ended(*code);
  if (tree_.alive() && !tree_.main_alive() && !job_over_) end_slice("its mpirun ended");
}

void Agent::slice_ended(int code) {
  for (const auto& [position, rank] : ranks_) rank.connection->close();
  ranks_.clear();
  kill_at_ = 0;
  // What a rank said tells more than how mpirun took it.
  if (!left_with_) left_with_ = Exited{code, code == 0 ? "" : last_error(config_.output, output_begin_)};
  to_coordinator(*left_with_);
  if (job_over_) result_ = 0;
  if (!result_ && next_life_) start_slice();
}

// The ranks leave by themselves; who stays longer than a lease is ended.
void Agent::take_verdict(const Envelope& envelope) {
  job_over_ = true;
  next_life_.reset();
  if (!tree_.alive()) {
    result_ = 0;
    return;
  }
  Envelope passed = envelope;
  passed.life = life_;
  to_ranks(passed);
  if (kill_at_ == 0) kill_at_ = monotonic_now() + config_.timeouts.lease();
}

// --- The ranks -----------------------------------------------------------------------------------

void Agent::rank_arrived(const ControlHello& hello, const std::shared_ptr<Connection>& connection) {
  const uint32_t position = hello.position;
  ranks_[position].connection = connection;
  connection->listen(kLongestFrame, {[this, position, life = life_](std::string_view payload) {
                                       if (life == life_) hear_rank(position, payload);
                                     },
                                     [this, position, life = life_](const std::string&) {
                                       if (life == life_) rank_gone(position);
                                     }});
  connection->send(encode_local(AgentBeat{}));
  if (position == 0 && coordinator_->connected()) to_leader(CoordinatorReached{});
}

void Agent::hear_rank(uint32_t position, std::string_view payload) {
  const auto message = decode_local(payload);
  const auto rank = ranks_.find(position);
  if (!message || rank == ranks_.end()) return;
  if (const auto* beat = std::get_if<RankBeat>(&*message)) {
    rank->second.beat = *beat;
    rank->second.beaten = true;
    renew_lease();
  } else if (const auto* leave = std::get_if<RankLeave>(&*message)) {
    rank->second.left = true;
    if (leave->code != 0 && !left_with_) left_with_ = Exited{leave->code, leave->reason};
    if (kill_at_ == 0) kill_at_ = monotonic_now() + config_.timeouts.lease();
  } else if (const auto* envelope = std::get_if<Envelope>(&*message)) {
    const bool own = envelope->slice == config_.slice && envelope->life == life_;
    if (position == 0 && own) coordinator_->send(encode_message(*envelope));
  }
}

void Agent::rank_gone(uint32_t position) {
  const auto rank = ranks_.find(position);
  if (rank == ranks_.end()) return;
  if (!rank->second.left) end_slice(fmt::format("its rank {} died", position));
}

void Agent::renew_lease() {
  if (ranks_.size() != config_.ranks || ending_) return;
  const RankBeat* slowest = nullptr;
  std::optional<SliceStatus> status;
  uint64_t unit_us = 0;
  for (const auto& [position, rank] : ranks_) {
    if (!rank.beaten) return;
    if (rank.beat->status) status = rank.beat->status;
    const uint64_t count = rank.beat->progress.count;
    unit_us = std::max(unit_us, rank.beat->progress.unit_us);
    // Of equally slow ones the one that waits for another slice: the others wait for it.
    const bool slower = !slowest || count < slowest->progress.count ||
                        (count == slowest->progress.count && rank.beat->progress.waits_for);
    if (slower) slowest = &*rank.beat;
  }
  if (!status) return;  // the leader has not said yet
  for (auto& [position, rank] : ranks_) rank.beaten = false;
  SliceProgress progress = slowest->progress;
  progress.unit_us = unit_us;
  to_coordinator(Beat{*status, progress}, status->epoch);
}

void Agent::to_leader(const LocalMessage& message) {
  if (const auto leader = ranks_.find(0); leader != ranks_.end())
    leader->second.connection->send(encode_local(message));
}

void Agent::to_ranks(const LocalMessage& message) {
  const std::string frame = encode_local(message);
  for (const auto& [position, rank] : ranks_) rank.connection->send(frame);
}

// The incarnation is for messages that answer one; facts hold in all.
void Agent::to_coordinator(const Message& message, EpochNumber epoch) {
  coordinator_->send(encode_message({0, epoch, config_.slice, life_, message}));
}

void Agent::say_hello() {
  hello_at_ = monotonic_now() + config_.timeouts.resend();
  to_coordinator(AgentHello{id_, hash_name(config_.host), life_, tree_.alive()});
}

}  // namespace maniple

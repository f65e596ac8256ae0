#include "launch/launcher.h"

#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "core/errors.h"
#include "elastic/decision_log.h"
#include "launch/agent.h"
#include "launch/clock.h"
#include "launch/control_server.h"
#include "launch/rank_environment.h"
#include "launch/run_writer.h"

namespace maniple {

namespace {

// The command with its environment, in this folder, on another host.
std::vector<std::string> on_host(const LauncherConfig::Place& place, const ProcessCommand& command) {
  std::vector<std::string> words = place.remote;
  words.insert(words.end(), {"env", "--chdir=" + std::filesystem::current_path().string()});
  for (const auto& [name, value] : command.environment) words.push_back(name + "=" + value);
  words.insert(words.end(), command.arguments.begin(), command.arguments.end());
  return words;
}

void close_input(int& input) {
  if (input >= 0) ::close(std::exchange(input, -1));
}

// Whether the child has ended, within the time.
bool await_end(pid_t child, Time most) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, child, 0));
  pollfd ended = {fd, POLLIN, 0};
  const int n = ::poll(&ended, 1, static_cast<int>(std::max<Time>(most, 1000) / kMillisecond));
  if (fd >= 0) ::close(fd);
  return n > 0;
}

}  // namespace

Launcher::Launcher(const LauncherConfig& config)
    : config_(config),
      listener_(open_control_listener(config.address)),
      children_(context_, SIGCHLD),
      stop_signals_(context_, SIGTERM, SIGINT),
      timer_(context_) {
  become_subreaper();
  ControlHello hello{config_.token, Role::kLauncher, 0, 0, 0};
  ControlClient::Events events;
  events.connected = [this] {
    if (!greeted_) send(0, Control{1, Command::kResume, 0});
    greeted_ = true;
    if (stop_at_ != 0) send(0, Control{2, Command::kPause, 0});
  };
  events.frame = [this](std::string_view payload) { hear(payload); };
  events.lost = [](const std::string&) {};
  line_ =
      std::make_shared<ControlClient>(context_, control_address_of(listener_), hello,
                                      config_.timeouts.beat(), config_.timeouts.connect(), events);
}

Launcher::~Launcher() {
  line_->close();
  for (auto& [slice, agent] : agents_) close_input(agent.input);
  for (const pid_t pid : child_processes())
    if (!is_remote() || pid == coordinator_.pid) ::kill(pid, SIGTERM);
  // Agents end their slices; what is left of those that do not is inherited here.
  const Time patience = monotonic_now() + config_.timeouts.lease();
  for (std::vector<pid_t> left; !(left = child_processes()).empty();) {
    if (!await_end(left.front(), patience - monotonic_now()))
      for (const pid_t pid : left) ::kill(pid, SIGKILL);
    ::waitpid(left.front(), nullptr, WNOHANG);
  }
  std::error_code ignored;
  for (SliceId slice = 0; slice < config_.num_slots; ++slice)
    std::filesystem::remove_all(shared_memory_folder(folder_.path(), slice), ignored);
  ::close(listener_);
}

int Launcher::run() {
  schedule_first();
  watch_children();
  watch_stop_signals();
  start_coordinator();
  for (SliceId slice = 0; slice < config_.num_slots; ++slice) start_agent(slice);
  line_->start();
  tick();
  while (!result_) context_.run_one();
  return *result_;
}

void Launcher::start_coordinator() {
  ProcessCommand command;
  command.arguments = config_.coordinator;
  command.environment = {{kListenerVariable, fmt::format("{}", listener_)}};
  command.input = config_.token + "\n";
  command.keep = {listener_};
  coordinator_.pid = start_process(command);
  coordinator_.started_at = monotonic_now();
}

void Launcher::start_agent(SliceId slice) {
  Child& agent = agents_[slice];
  ProcessCommand command;
  command.arguments = config_.agent;
  command.environment = {{kCoordinatorVariable, control_address_of(listener_)},
                         {kSliceVariable, fmt::format("{}", slice)},
                         {kStartVariable, fmt::format("{}", ++agent.starts)}};
  if (is_remote()) {
    const LauncherConfig::Place& place = config_.places.at(slice);
    command.environment.push_back({kHostVariable, place.host});
    command.arguments = on_host(place, command);
  } else {
    command.environment.push_back({kFolderVariable, folder_.path()});
  }
  command.input = config_.token + "\n";
  command.held = &agent.input;
  command.death_signal = SIGTERM;  // to end its slice, then itself
  agent.started_at = monotonic_now();
  agent.pid = start_process(command);
}

void Launcher::watch_children() {
  children_.async_wait([this](const asio::error_code& error, int) {
    if (error) return;
    reap();
    watch_children();
  });
}

void Launcher::watch_stop_signals() {
  stop_signals_.async_wait([this](const asio::error_code& error, int) {
    if (error) return;
    ask_to_stop();
    watch_stop_signals();
  });
}

void Launcher::tick() {
  reap();
  if (stop_at_ != 0 && agents_end_by_ == 0) {
    send(0, Control{3, Command::kStatus, 0});
    if (monotonic_now() >= stop_at_) end_agents();
  }
  if (agents_end_by_ != 0 && monotonic_now() >= agents_end_by_)
    for (const auto& [slice, agent] : agents_)
      if (agent.pid != 0) ::kill(agent.pid, SIGKILL);
  timer_.expires_after(std::chrono::microseconds(config_.timeouts.beat()));
  timer_.async_wait([this](const asio::error_code& stopped) {
    if (!stopped) tick();
  });
}

void Launcher::reap() {
  int status = 0;
  for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
    if (pid == coordinator_.pid) coordinator_ended(status);
    for (auto& [slice, agent] : agents_)
      if (pid == agent.pid) agent_ended(slice, status);
  }
  if (!result_ && end_orphans()) start_due();
}

// What killed agents left behind. True when nothing is left.
bool Launcher::end_orphans() {
  bool clean = true;
  for (const pid_t pid : child_processes()) {
    const bool known =
        pid == coordinator_.pid || std::any_of(agents_.begin(), agents_.end(),
                                               [&](const auto& a) { return a.second.pid == pid; });
    if (known) continue;
    clean = false;
    ::kill(pid, SIGKILL);
  }
  return clean;
}

void Launcher::count_failure(Child& child) const {
  const Time now = monotonic_now();
  child.pid = 0;
  child.failures = now - child.started_at > 5 * config_.timeouts.lease() ? 1 : child.failures + 1;
  // At once the first time.
  child.start_at =
      now + (config_.timeouts.beat() << std::min(child.failures - 1, 8u)) - config_.timeouts.beat();
}

void Launcher::coordinator_ended(int wait_status) {
  count_failure(coordinator_);
  if (result_) return;
  if (!WIFSIGNALED(wait_status)) {
    if (const auto code = logged_verdict()) return end(*code);
  }
  if (agents_end_by_ != 0 || coordinator_.failures <= config_.max_failures) return;
  fmt::print(stderr, "the coordinator ended {} times in a row, the last time with {}\n",
             coordinator_.failures, exit_code_of(wait_status));
  end(exit_code_of(wait_status));
}

void Launcher::agent_ended(SliceId slice, int wait_status) {
  Child& agent = agents_.at(slice);
  const bool done = WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0;
  count_failure(agent);
  close_input(agent.input);
  agent.reported = false;
  if (!done) send(slice, Dying{}, agent.starts);
  if (done || (!is_remote() && agent.failures > config_.max_failures)) agent.start_at = 0;
  if (is_remote() && !done && !result_ && agents_end_by_ == 0)
    fmt::print(stderr, "the agent of slice {} on {} ended with {}; it is started again\n", slice,
               config_.places.at(slice).host, exit_code_of(wait_status));
}

// Tells of deaths whose remains are gone, and starts again what is to run.
void Launcher::start_due() {
  const Time now = monotonic_now();
  bool agents_left = false;
  for (auto& [slice, agent] : agents_) {
    agents_left = agents_left || agent.pid != 0;
    if (agent.pid != 0 || agent.reported) continue;
    send(slice, Exited{}, agent.starts);
    agent.reported = true;
  }
  if (agents_end_by_ != 0) {
    if (agents_left) return;
    if (coordinator_.pid != 0)
      ::kill(coordinator_.pid, SIGTERM);  // everything that it knows is in its log
    else
      end(logged_verdict().value_or(static_cast<int>(ExitCode::kPreempted)));
    return;
  }
  if (coordinator_.pid == 0 && now >= coordinator_.start_at) start_coordinator();
  for (auto& [slice, agent] : agents_)
    if (agent.pid == 0 && agent.start_at != 0 && now >= agent.start_at) start_agent(slice);
}

void Launcher::hear(std::string_view payload) {
  const auto envelope = decode_message(payload);
  if (!envelope) return;
  if (std::holds_alternative<Dismiss>(envelope->message)) {
    const auto agent = agents_.find(envelope->slice);
    if (agent != agents_.end() && agent->second.pid != 0 && agent->second.starts == envelope->life)
      ::kill(agent->second.pid, SIGKILL);
    return;
  }
  const auto* reply = std::get_if<ControlReply>(&envelope->message);
  if (!reply || reply->request != 3 || stop_at_ == 0) return;
  // "phase Paused epoch E step K published P ...": the state is safe when P is K.
  int64_t epoch = 0, step = 0, published = 0;
  const bool paused = std::sscanf(reply->text.c_str(), "phase Paused epoch %ld step %ld published %ld",
                                  &epoch, &step, &published) == 3;
  if (paused && published == step) end_agents();
}

void Launcher::ask_to_stop() {
  if (stop_at_ != 0) return end_agents();
  stop_at_ = monotonic_now() + config_.grace;
  send(0, Control{2, Command::kPause, 0});
}

void Launcher::end_agents() {
  if (agents_end_by_ != 0) return;
  agents_end_by_ = monotonic_now() + config_.timeouts.orphan();
  for (auto& [slice, agent] : agents_) {
    close_input(agent.input);
    if (agent.pid != 0 && !is_remote()) ::kill(agent.pid, SIGTERM);
  }
}

void Launcher::end(int code) { result_ = code; }

void Launcher::send(SliceId slice, const Message& message, Life agent) {
  line_->send(encode_message({0, 0, slice, agent, message}));
}

std::optional<int> Launcher::logged_verdict() const {
  // The coordinator, if it lives, holds the log's lock and has no verdict for this launcher yet.
  if (coordinator_.pid != 0) return std::nullopt;
  const auto verdict = DecisionLog(decision_log_path(config_.run_dir)).history().verdict;
  return verdict ? std::optional<int>(verdict->code) : std::nullopt;
}

}  // namespace maniple

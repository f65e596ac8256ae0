#include "launch/coordinator_shell.h"

#include "core/errors.h"
#include "launch/clock.h"
#include "launch/processes.h"

namespace maniple {

CoordinatorShell::CoordinatorShell(const CoordinatorShellConfig& config)
    : config_(config), writer_(config.run_dir), log_(decision_log_path(config.run_dir)) {
  coordinator_.emplace(config_.job, log_.history(), writer_.rows_written());
  ControlServer::Events events;
  events.judge = [this](const ControlHello& hello) -> std::string {
    if (hello.role == Role::kRank) return "ranks talk to their agent";
    if (hello.role == Role::kAgent && hello.slice >= config_.job.num_slots())
      return fmt::format("there is no slice {}, the job has {} slots", hello.slice,
                         config_.job.num_slots());
    if (hello.role == Role::kAgent && hello.life < latest_[hello.slice].start)
      return fmt::format("a later agent of slice {} was started", hello.slice);
    return {};
  };
  events.arrived = [this](const ControlHello& hello, std::shared_ptr<Connection> connection) {
    arrived(hello, connection);
  };
  if (config_.listener >= 0)
    server_ = std::make_unique<ControlServer>(context_, config_.listener, config_.token, events);
  else
    server_ = std::make_unique<ControlServer>(context_, config_.address, config_.token, events);
}

CoordinatorShell::~CoordinatorShell() {
  for (const auto& [slice, connection] : agents_) connection->close();
}

int CoordinatorShell::run() {
  schedule_first();
  // A burst of messages must not keep the clock from being looked at.
  constexpr int kMostHandlers = 10000;
  now_ = heard_at_ = monotonic_now();
  perform(coordinator_->start(now_));
  Time next_tick = monotonic_now();
  while (!over(monotonic_now())) {
    context_.run_one_for(std::chrono::microseconds(std::max<Time>(1, next_tick - monotonic_now())));
    for (int i = 0; i < kMostHandlers && context_.poll_one() > 0; ++i) {
    }
    report_dead_agents();
    const Time now = monotonic_now();
    watch_agents(now);
    if (now < next_tick) continue;
    next_tick = now + config_.job.timeouts.tick();
    end_silent_agents();
    feed(Tick{});
  }
  return coordinator_->history().verdict->code;
}

// When time stands still, and when it goes on.
void CoordinatorShell::watch_agents(Time now) {
  const Timeouts& timeouts = config_.job.timeouts;
  const bool silent = now - heard_at_ > timeouts.suspicion();
  if (silent) {
    if (!cut_off_ && !latest_.empty()) writer_.write_event("cut_off", "no agent is heard");
    cut_off_ = true;
    goes_on_at_.reset();
  } else if (cut_off_ && !goes_on_at_) {
    goes_on_at_ = now + timeouts.lease();
  } else if (cut_off_ && now >= *goes_on_at_) {
    cut_off_ = false;
  }
}

// What starts an agent on another host, such as ssh, may wait for ever for a host that is gone; only
// when the launcher ends it can it start another. Ticks, so that a hold-up of this process counts once.
void CoordinatorShell::end_silent_agents() {
  const Timeouts& timeouts = config_.job.timeouts;
  const auto launcher = launcher_.lock();
  if (cut_off_ || !launcher) return;
  for (auto& [slice, agent] : latest_) {
    if (agent.ended || ++agent.silent_ticks < timeouts.transport() / timeouts.tick()) continue;
    agent.ended = true;
    note("agent_silent", fmt::format("slice {}: nothing was heard of its agent for {} s", slice,
                                     timeouts.transport() / kSecond));
    launcher->send(encode_message({0, 0, slice, agent.start, Dismiss{"nothing was heard of it"}}));
  }
}

// The job has ended, and who has to hear of it has had the time.
bool CoordinatorShell::over(Time now) const {
  if (!coordinator_->history().verdict) return false;
  const Time lease = config_.job.timeouts.lease();
  const Time since = now - ended_at_;
  return (met_agents_ && agents_.empty()) || (agents_.empty() && since > lease) ||
         since > 5 * lease;
}

void CoordinatorShell::arrived(const ControlHello& hello,
                               const std::shared_ptr<Connection>& connection) {
  if (hello.role == Role::kAgent) {
    const SliceId slice = hello.slice;
    // The newer one: the other may be half dead.
    if (const auto old = agents_.find(slice); old != agents_.end()) old->second->close();
    agents_[slice] = connection;
    latest_[slice] = {hello.life};
    heard_at_ = monotonic_now();
    met_agents_ = true;
    connection->listen(kLongestFrame,
                       {[this, slice](std::string_view payload) { hear_agent(slice, payload); },
                        [this, slice](const std::string&) { agents_.erase(slice); }});
  } else {
    const std::weak_ptr<Connection> weak = connection;
    if (hello.role == Role::kLauncher) launcher_ = weak;
    connection->listen(kLongestFrame, {[this, role = hello.role, weak](std::string_view payload) {
                                         if (const auto from = weak.lock())
                                           hear_client(role, from, payload);
                                       },
                                       [](const std::string&) {}});
  }
}

std::optional<Envelope> CoordinatorShell::decode(std::string_view payload) {
  std::optional<Envelope> envelope = decode_message(payload);
  ++(envelope ? counters_.received : counters_.malformed);
  return envelope;
}

void CoordinatorShell::hear_agent(SliceId slice, std::string_view payload) {
  heard_at_ = monotonic_now();
  latest_[slice].silent_ticks = 0;
  if (is_pulse(payload)) return agents_.at(slice)->send(encode_pulse());
  const auto envelope = decode(payload);
  if (!envelope) return;
  if (envelope->slice == slice)
    feed(Received{*envelope});
  else
    ++counters_.misplaced;
}

// An operator's request, or the launcher's report that it has reaped the agent of a slice (Dying) and
// everything that the agent had started (Exited).
void CoordinatorShell::hear_client(Role role, const std::shared_ptr<Connection>& from,
                                   std::string_view payload) {
  const auto envelope = decode(payload);
  if (!envelope) return;
  if (const auto* control = std::get_if<Control>(&envelope->message)) {
    asking_ = from;
    feed(OperatorRequest{*control});
    asking_.reset();
  } else if (role == Role::kLauncher && (std::holds_alternative<Dying>(envelope->message) ||
                                         std::holds_alternative<Exited>(envelope->message))) {
    const bool all_gone = std::holds_alternative<Exited>(envelope->message);
    dead_agents_.push_back({envelope->slice, all_gone});
    LatestAgent& latest = latest_[envelope->slice];
    latest.ended = latest.ended || latest.start == envelope->life;
  } else {
    ++counters_.misplaced;
  }
}

// Examined when all that sockets held was delivered, the end of the dead agent's connection too. A
// connection that is open then is its successor's, who says himself what he runs.
void CoordinatorShell::report_dead_agents() {
  for (const auto& [slice, all_gone] : std::exchange(dead_agents_, {})) {
    const auto slot = coordinator_->history().slots.find(slice);
    if (agents_.contains(slice) || slot == coordinator_->history().slots.end()) continue;
    if (all_gone)
      feed(SliceLost{slice, slot->second.life, "its agent died"});
    else
      feed(SliceDying{slice, slot->second.life, "its agent died"});
  }
}

void CoordinatorShell::feed(const CoordinatorEvent& event) {
  if (!cut_off_) now_ = monotonic_now();
  perform(coordinator_->on(event, now_));
}

void CoordinatorShell::perform(const std::vector<CoordinatorAction>& actions) {
  for (const CoordinatorAction& action : actions) perform(action);
  if (coordinator_->history().verdict && ended_at_ == 0) {
    ended_at_ = monotonic_now();
    met_agents_ = !agents_.empty();
  }
}

void CoordinatorShell::perform(const CoordinatorAction& action) {
  if (const auto* append = std::get_if<Append>(&action)) {
    log_.append(append->record);
  } else if (const auto* send = std::get_if<Send>(&action)) {
    const auto agent = agents_.find(send->envelope.slice);
    if (agent != agents_.end()) agent->second->send(encode_message(send->envelope));
  } else if (const auto* reply = std::get_if<Reply>(&action)) {
    if (asking_)
      asking_->send(encode_message({coordinator_->history().incarnation,
                                    coordinator_->history().number(), 0, 0, reply->reply}));
  } else if (const auto* write = std::get_if<WriteRow>(&action)) {
    const auto& epoch = coordinator_->history().epoch;
    const bool good = writer_.write_row(
        write->row, {{"epoch", coordinator_->history().number()},
                     {"slices", epoch ? epoch->members.size() : 0}});
    if (!good)
      writer_.write_event("row_refused",
                          fmt::format("step {}: no JSON object of this step", write->row.step));
    for (const auto& record : writer_.last_records())
      if (config_.show_record) config_.show_record(record);
  } else if (const auto* drop = std::get_if<DropRows>(&action)) {
    writer_.drop_rows(drop->after);
    if (config_.drop_checkpoints) config_.drop_checkpoints(drop->after);
  } else if (const auto* complete = std::get_if<PublishCheckpoint>(&action)) {
    publish(*complete);
  } else if (const auto* said = std::get_if<Note>(&action)) {
    note(said->event, said->text);
  }
}

void CoordinatorShell::note(const std::string& event, const std::string& text) {
  writer_.write_event(event, text);
  if (config_.show_event) config_.show_event(event, text);
}

void CoordinatorShell::publish(const PublishCheckpoint& complete) {
  if (!config_.publish)
    return writer_.write_event("checkpoint_ignored", fmt::format("step {}", complete.step));
  try {
    config_.publish(complete);
  } catch (const Error& error) {  // the one before stays the newest; training goes on
    return note("checkpoint_failed", fmt::format("step {}: {}", complete.step, error.what()));
  }
  note("checkpoint", fmt::format("step {}", complete.step));
  // Not from inside perform: the coordinator has not ended its turn.
  asio::post(context_, [this, step = complete.step] { feed(CheckpointPublished{step}); });
}

}  // namespace maniple

// The process around the pure coordinator (elastic/coordinator.h): connections of agents, of the
// launcher and of operators, the time, the decision log, the files of the run folder. One thread.
//
// Decisions are durable before anything that follows from them is sent. What the sockets hold is
// always delivered before the next Tick, so a process that was held up hears its agents before it
// judges them. One that hears no agent at all is taken to be cut off itself: time stands still for
// it until a lease after the first word, then all have fresh leases; training goes on meanwhile. A
// death at any instruction is repaired by starting it again with the same run
// folder.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "elastic/coordinator.h"
#include "elastic/decision_log.h"
#include "launch/control_server.h"
#include "launch/run_writer.h"

namespace maniple {

struct CoordinatorShellConfig {
  CoordinatorConfig job;
  std::string run_dir;
  std::string token;
  std::string address = "tcp:127.0.0.1:0";
  int listener = -1;  // a listening socket to take over, instead of the address
  // Makes a checkpoint that is complete and stable the newest one; durable when it returns. Without
  // it checkpoints are not published.
  std::function<void(const PublishCheckpoint&)> publish;
  std::function<void(Step after)> drop_checkpoints;  // of a history that was rolled back
  // What people see. May be empty.
  std::function<void(const nlohmann::ordered_json& record)> show_record;
  std::function<void(const std::string& event, const std::string& text)> show_event;
};

class CoordinatorShell {
 public:
  // Throws IoError, DataError (the log), CommError (the address).
  explicit CoordinatorShell(const CoordinatorShellConfig& config);
  ~CoordinatorShell();

  uint16_t port() const { return server_->port(); }

  // Serves until the job has ended and the agents have gone; returns the verdict's code. Throws
  // IoError when a decision cannot be made durable: the process has to end.
  int run();

  struct Counters {
    uint64_t received = 0;   // messages
    uint64_t malformed = 0;  // frames that hold no message, dropped
    uint64_t misplaced = 0;  // messages that their sender may not send, dropped
  };
  const Counters& counters() const { return counters_; }

 private:
  void arrived(const ControlHello& hello, const std::shared_ptr<Connection>& connection);
  void hear_agent(SliceId slice, std::string_view payload);
  void hear_client(Role role, const std::shared_ptr<Connection>& from, std::string_view payload);
  std::optional<Envelope> decode(std::string_view payload);
  void report_dead_agents();
  void watch_agents(Time now);
  void end_silent_agents();
  void feed(const CoordinatorEvent& event);
  void perform(const std::vector<CoordinatorAction>& actions);
  void perform(const CoordinatorAction& action);
  void publish(const PublishCheckpoint& publish);
  void note(const std::string& event, const std::string& text);
  bool over(Time now) const;

  CoordinatorShellConfig config_;
  RunWriter writer_;
  DecisionLog log_;
  asio::io_context context_{1};
  std::optional<Coordinator> coordinator_;
  std::unique_ptr<ControlServer> server_;
  std::map<SliceId, std::shared_ptr<Connection>> agents_;
  std::shared_ptr<Connection> asking_;  // the operator whose request is being answered
  // As the launcher said, not yet examined: with or without everything that the agent had started.
  std::vector<std::pair<SliceId, bool>> dead_agents_;
  struct LatestAgent {
    Life start = 0;         // its number
    Time silent_ticks = 0;  // since its last word
    bool ended = false;     // or about to be
  };
  std::map<SliceId, LatestAgent> latest_;
  std::weak_ptr<Connection> launcher_;
  Time now_ = 0;                    // the coordinator's time
  Time heard_at_ = 0;               // when the last word of any agent came
  bool cut_off_ = false;            // time stands still
  std::optional<Time> goes_on_at_;  // once an agent was heard again
  Time ended_at_ = 0;               // when the verdict was there; 0: not yet
  bool met_agents_ = false;         // since then, or at that time
  Counters counters_;
};

}  // namespace maniple

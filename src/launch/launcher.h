// The process that a person starts: it starts the coordinator here and one agent per slot, here or
// on other hosts, starts them again when they die, and gives the final verdict. One thread, the main
// one.
//
// Another host is reached by a command such as ssh, which carries the agent's standard input and
// ends with the agent. An agent hears of the launcher's end, or of the job's, by the end of its
// input. Of a host that cannot be reached the launcher does not tire.
//
// It holds the coordinator's listening socket, so agents find a restarted coordinator at the same
// address and wait in the socket meanwhile. As subreaper it inherits what a killed agent leaves
// behind, ends it, and tells the coordinator.
//
// TERM or INT asks for an orderly stop: the job pauses at a step boundary (at most `grace`), then
// agents end their slices and the exit code is 75. A second signal leaves the pause out. When the
// launcher is killed, the agents get TERM and the coordinator KILL from the kernel, so nothing
// outlives it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "elastic/timeouts.h"
#include "launch/control_client.h"
#include "launch/control_server.h"
#include "launch/processes.h"

namespace maniple {

struct LauncherConfig {
  std::string run_dir;
  std::string token;  // children read it from standard input
  std::string address = "tcp:127.0.0.1:0";
  uint32_t num_slots = 1;
  // Programs and their arguments; they find the rest in the environment (below) and on stdin.
  std::vector<std::string> coordinator, agent;
  // Of each slot its host and the words that start a command there. Empty: all slots are here.
  struct Place {
    std::string host;
    std::vector<std::string> remote;
  };
  std::vector<Place> places;
  Timeouts timeouts;
  Time grace = 10 * kSecond;
  uint32_t max_failures = 10;  // deaths in a row, each within 5 leases of its start
};

constexpr char kListenerVariable[] = "MANIPLE_LISTENER";        // coordinator: a descriptor
constexpr char kCoordinatorVariable[] = "MANIPLE_COORDINATOR";  // agent: control address
constexpr char kFolderVariable[] = "MANIPLE_FOLDER";            // agent here: for its private folder
constexpr char kStartVariable[] = "MANIPLE_START";              // agent: how often it was started
// and kSliceVariable for the agent's slot, elsewhere kHostVariable (launch/rank_environment.h)

class Launcher {
 public:
  // Throws IoError, CommError, ConfigError.
  explicit Launcher(const LauncherConfig& config);
  ~Launcher();  // nothing that it started is left

  // Where the coordinator listens, also for operators.
  std::string address() const { return control_address_of(listener_); }

  // Returns the job's exit code when all has ended.
  int run();

 private:
  struct Child {
    pid_t pid = 0;   // 0: not running
    int input = -1;  // an agent's: the end of its standard input that is held here
    uint32_t starts = 0;
    uint32_t failures = 0;
    Time started_at = 0, start_at = 0;
    bool reported = true;  // the coordinator was told of the last death
  };

  void start_coordinator();
  void start_agent(SliceId slice);
  bool is_remote() const { return !config_.places.empty(); }
  void reap();
  void coordinator_ended(int wait_status);
  void agent_ended(SliceId slice, int wait_status);
  void count_failure(Child& child) const;
  bool end_orphans();
  void start_due();
  void hear(std::string_view payload);
  void ask_to_stop();
  void end_agents();
  void end(int code);
  void send(SliceId slice, const Message& message, Life agent = 0);
  void watch_children();
  void watch_stop_signals();
  void tick();
  std::optional<int> logged_verdict() const;

  const LauncherConfig config_;
  PrivateFolder folder_;
  const int listener_;
  asio::io_context context_{1};
  asio::signal_set children_, stop_signals_;
  asio::steady_timer timer_;
  std::shared_ptr<ControlClient> line_;
  Child coordinator_;
  std::map<SliceId, Child> agents_;
  bool greeted_ = false;        // the coordinator was told to go on
  Time stop_at_ = 0;            // 0: no stop was asked for
  Time agents_end_by_ = 0;      // 0: they were not asked to end
  std::optional<int> result_;
};

}  // namespace maniple

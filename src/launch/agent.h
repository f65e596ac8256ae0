// The agent of a slot: starts and ends the slice's processes as the coordinator orders, renews its
// lease with what its ranks say, and carries messages between the leader and the coordinator. One
// thread, the main one.
//
// It owns its slice: as subreaper it ends everything that the slice's command started and nothing
// else, and whatever ends the agent ends the slice. A rank whose connection ends without a farewell
// is dead, and so is its slice: the agent kills the rest at once, without waiting for mpirun to
// notice.
//
// Lease. A beat goes to the coordinator whenever every rank has beaten since the one before, so the
// lease of a slice is that of its slowest rank.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "elastic/timeouts.h"
#include "launch/control_client.h"
#include "launch/control_server.h"
#include "launch/process_tree.h"
#include "launch/rank_environment.h"

namespace maniple {

struct AgentConfig {
  SliceId slice = 0;
  uint32_t ranks = 1;       // of the slice
  uint64_t host = 0;        // failure domain
  std::string coordinator;  // control address
  std::string token;
  std::vector<std::string> command;                              // that starts the slice
  std::vector<std::pair<std::string, std::string>> environment;  // of the command, added
  std::string output;  // of the command; empty: this process's
  std::string folder;  // where the private folder is made; empty: $TMPDIR
  Timeouts timeouts;
};

class Agent {
 public:
  explicit Agent(const AgentConfig& config);
  ~Agent();  // all processes of the slice are gone when it returns

  // Serves until the job has ended or the process is asked to end (TERM, INT; TERM is also what the
  // launcher's death sends). Returns the exit code: 0, or 75 when asked to end.
  int run();

 private:
  struct Rank {
    std::shared_ptr<Connection> connection;
    std::optional<RankBeat> beat;  // the last
    bool beaten = false;           // since the last beat to the coordinator
    bool left = false;             // said farewell
  };

  void hear_coordinator(std::string_view payload);
  void launch(Life life);
  void start_slice();
  void end_slice(const std::string& reason);
  void slice_ended(int code);
  void take_verdict(const Envelope& envelope);

  void rank_arrived(const ControlHello& hello, const std::shared_ptr<Connection>& connection);
  void hear_rank(uint32_t position, std::string_view payload);
  void rank_gone(uint32_t position);
  void renew_lease();
  void to_leader(const LocalMessage& message);
  void to_ranks(const LocalMessage& message);
  void to_coordinator(const Message& message, EpochNumber epoch = 0);
  void say_hello();

  void tick();
  void reap();
  void watch_children();

  const AgentConfig config_;
  const uint64_t id_;
  PrivateFolder folder_;
  asio::io_context context_{1};
  asio::signal_set children_, stop_signals_;
  asio::steady_timer timer_;
  std::unique_ptr<ControlServer> server_;
  std::shared_ptr<ControlClient> coordinator_;
  ProcessTree tree_;
  Life life_ = 0;                   // last one started
  std::optional<Life> next_life_;   // to start when the one before has ended
  std::map<uint32_t, Rank> ranks_;  // by position
  std::optional<Exited> left_with_;  // first code other than 0 that a rank left with
  bool ending_ = false;             // the slice was told to end
  bool job_over_ = false;           // the verdict is known
  Time kill_at_ = 0, hello_at_ = 0;
  std::optional<int> result_;  // of run(); set when the job has ended or a signal came
};

}  // namespace maniple

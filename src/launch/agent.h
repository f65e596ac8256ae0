// The agent of a slot: starts and ends the slice's processes as the coordinator orders, renews its
// lease with what its ranks say, and carries messages between the leader and the coordinator. One
// thread, the main one.
//
// It owns its slice: as subreaper it ends everything that the slice's command started and nothing
// else, and whatever ends the agent ends the slice. A rank whose connection ends without a farewell
// is dead, and so is its slice: the agent kills the rest at once, without waiting for mpirun to
// notice.
//
// Orphans. The launcher holds the other end of the agent's standard input, through ssh and the like
// on another host: its end is an order to end. Should the host be cut off, so that no end can be
// seen: a slice that has neither a coordinator nor progress for Timeouts::orphan() is ended, and an
// agent without slice and coordinator ends after Timeouts::transport().
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
  std::string host;         // failure domain
  std::string address;      // numeric, for the ports of the ranks
  uint32_t start = 1;       // number of the start; the coordinator refuses an earlier agent
  int launcher = -1;        // a descriptor that ends when this process is to end; -1: none
  std::string coordinator;  // control address
  std::string token;
  std::vector<std::string> command;                              // that starts the slice
  std::vector<std::pair<std::string, std::string>> environment;  // of the command, added
  std::string output;  // of the command; empty: this process's
  std::string folder;  // where the private folder is made; empty: $TMPDIR
  Timeouts timeouts;
};

// Where Open MPI keeps the segments of a slice's processes, given the agent's AgentConfig::folder. Of
// an agent that was killed, the next one or the launcher removes it.
std::string shared_memory_folder(const std::string& folder, SliceId slice);

class Agent {
 public:
  explicit Agent(const AgentConfig& config);
  ~Agent();  // all processes of the slice are gone when it returns

  // Serves until the job has ended or the process is asked to end (TERM, INT, the end of `launcher`;
  // TERM is also what the launcher's death sends). Returns the exit code: 0, 75 when asked to end, 80
  // when the coordinator refused it or was not reached for long.
  int run();

 private:
  struct Rank {
    std::shared_ptr<Connection> connection;
    std::optional<RankBeat> beat;  // the last
    bool beaten = false;           // since the last beat to the coordinator
    bool left = false;             // said farewell
  };

  void watch_launcher();
  void watch_coordinator();
  void hear_coordinator(std::string_view payload);
  void launch(Life life, bool burn_in);
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
  uint64_t progress() const;
  void reap();
  void watch_children();

  const AgentConfig config_;
  const uint64_t id_;
  PrivateFolder folder_;
  const std::string shared_memory_;  // folder of the slice's segments
  asio::io_context context_{1};
  asio::signal_set children_, stop_signals_;
  asio::steady_timer timer_;
  asio::posix::stream_descriptor launcher_;
  char from_launcher_ = 0;
  std::unique_ptr<ControlServer> server_;
  std::shared_ptr<ControlClient> coordinator_;
  ProcessTree tree_;
  Life life_ = 0;                   // last one started
  std::optional<Life> next_life_;   // to start when the one before has ended
  bool burn_in_ = false;            // of the life to start
  std::map<uint32_t, Rank> ranks_;  // by position
  std::optional<Exited> left_with_;  // first code other than 0 that a rank left with
  uint64_t output_begin_ = 0;        // of this life in AgentConfig::output, bytes
  bool ending_ = false;             // the slice was told to end
  bool job_over_ = false;           // the verdict is known
  Time kill_at_ = 0, hello_at_ = 0;
  // In ticks, so that a pause of this host does not count.
  Time ticks_ = 0;
  Time silent_ticks_ = 0;  // nothing was heard of the coordinator
  Time idle_ticks_ = 0;    // the slice got nowhere
  uint64_t progress_ = 0;  // of the slice, at the last tick
  std::optional<int> result_;  // of run(); set when the job has ended or a signal came
};

}  // namespace maniple

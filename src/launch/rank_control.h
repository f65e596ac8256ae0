// A training rank's line to its agent: beats with what the rank does, STOP and the verdict from the
// coordinator, and for the leader (position 0) the messages of its membership. Needs neither torch
// nor MPI; the trainer owns one.
//
// A thread of its own beats, whatever the training thread does: that proves the process lives. The
// progress count is taken by the training thread alone and proves that it gets on.
//
// A rank does not outlive its agent: when the connection ends, or nothing is heard of the agent for
// Timeouts::orphan() (counted in beats of this rank, so that a pause of the whole machine does not
// count), `orphaned` is called.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "elastic/messages.h"
#include "elastic/timeouts.h"

namespace maniple {

class RankControl {
 public:
  struct Config {
    std::string agent;  // control address
    std::string token;
    SliceId slice = 0;
    Life life = 0;
    uint32_t position = 0;
    bool burn_in = false;
    std::string host;     // failure domain
    std::string address;  // numeric, for the ports of this rank
    Timeouts timeouts;
  };
  // From the environment that the agent made (launch/rank_environment.h); nothing without one.
  // Throws ConfigError for a damaged one.
  static std::optional<Config> from_environment(uint32_t position);

  // What the training thread does now.
  struct Doing {
    Step step = 0;
    uint32_t attempt = 0, unit = 0, phase = 0;
  };

  // Called by the control thread; must not wait for the training thread.
  struct Events {
    // To every rank: STOP (both kinds) and the verdict. To the leader everything.
    std::function<void(const Envelope&)> message;
    // Leader: the coordinator was reached (anew).
    std::function<void()> reached;
    // Leader: its membership's status and the member that its vote waits for, for the beats.
    std::function<std::pair<SliceStatus, std::optional<SliceId>>()> status;
    // A slice that the training thread waits for. May be empty.
    std::function<std::optional<SliceId>()> waits_for;
    // Empty: the process ends with exit code 80.
    std::function<void(const std::string& reason)> orphaned;
  };

  // Connects; returns when the agent has said welcome. Throws CommError.
  RankControl(const Config& config, Events events);
  // Without leave() before it the agent takes the end of the connection for a death.
  ~RankControl();
  RankControl(const RankControl&) = delete;
  RankControl& operator=(const RankControl&) = delete;

  // Any thread; in the training thread whenever it finishes something.
  void progress(const Doing& doing);
  // The time of a unit in the last steps.
  void pace(Time unit);
  // Leader, any thread: to the coordinator, in the order of the calls. Lost when the coordinator is
  // away.
  void send(const Envelope& envelope);
  // The process is about to end with this code, on purpose or because of an error that the reason
  // tells. Returns when the agent's socket has it.
  void leave(int32_t code, const std::string& reason = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace maniple

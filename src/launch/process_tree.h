// A program and everything that came of it, for a process that is a subreaper and starts nothing
// else at the same time. Main thread.
#pragma once

#include <optional>

#include "launch/processes.h"

namespace maniple {

class ProcessTree {
 public:
  // None may be alive. Throws IoError.
  void start(const ProcessCommand& command);
  bool alive() const { return main_ != 0; }
  // The program itself still runs, as far as reap() has seen.
  bool main_alive() const { return main_ != 0 && !code_; }

  // SIGKILL to all. reap() goes on with those that show up as their parents die.
  void kill();
  // To be called on SIGCHLD and now and then. Reaps what has ended; once the program has, its
  // remains are killed. The program's exit code when the last process is gone, else nothing.
  std::optional<int> reap();
  // Kills and reaps all; returns when none is left.
  void end();

 private:
  pid_t main_ = 0;
  std::optional<int> code_;  // of main, once it was reaped
  bool killing_ = false;
};

}  // namespace maniple

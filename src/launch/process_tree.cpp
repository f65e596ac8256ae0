#include "launch/process_tree.h"

#include <sys/wait.h>

#include <cerrno>
#include <utility>

#include "core/errors.h"

namespace maniple {

void ProcessTree::start(const ProcessCommand& command) {
  MANIPLE_INVARIANT(!alive(), "process {} and its children still run", main_);
  MANIPLE_INVARIANT(command.own_group, "the group of this process would be killed");
  main_ = start_process(command);
  code_.reset();
  killing_ = false;
}

void ProcessTree::kill() {
  if (!alive()) return;
  killing_ = true;
  // An id stays taken until its process is reaped, and only children are named here: nobody else
  // can be hit.
  if (!code_) ::kill(-main_, SIGKILL);
  for (const pid_t pid : child_processes()) ::kill(pid, SIGKILL);
}

std::optional<int> ProcessTree::reap() {
  if (!alive()) return std::nullopt;
  for (;;) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid < 0 && errno == EINTR) continue;
    if (pid < 0) break;  // no child is left
    if (pid == 0) {
      if (code_ || killing_) kill();
      return std::nullopt;
    }
    if (pid == main_) code_ = exit_code_of(status);
  }
  main_ = 0;
  return std::exchange(code_, std::nullopt);
}

void ProcessTree::end() {
  while (alive()) {
    kill();
    siginfo_t ended;
    ::waitid(P_ALL, 0, &ended, WEXITED | WNOWAIT);  // waits, leaves the reaping to reap()
    reap();
  }
}

}  // namespace maniple

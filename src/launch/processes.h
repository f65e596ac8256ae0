// Starting processes and ending all that came of them. A process that calls become_subreaper()
// inherits every orphan among its descendants, so nothing that it started, directly or not, can
// slip away: when its last child is reaped, all are gone.
//
// Call from the main thread: the parent-death signal of a child comes when the thread that forked
// it ends.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <string>
#include <utility>
#include <vector>

namespace maniple {

void become_subreaper();  // throws IoError

// For a thread that sleeps nearly always and must not queue behind computing ones when it wakes: real
// time scheduling (SCHED_RR 1), not inherited by what it starts. Without the permission
// (CAP_SYS_NICE) everything stays as it is.
void schedule_first() noexcept;

struct ProcessCommand {
  std::vector<std::string> arguments;  // the program first; searched in PATH
  std::vector<std::pair<std::string, std::string>> environment;  // added to this process's own
  int death_signal = SIGKILL;  // that the child gets when this process dies
  bool own_group = true;       // a process group of its own
  std::string input;           // what stdin holds, up to 4 KiB; empty: inherited
  int* held = nullptr;         // gets the other end of stdin; else stdin ends behind `input`
  std::string output;          // file that stdout and stderr are appended to; empty: inherited
  std::vector<int> keep;       // descriptors that survive the exec
};
// Throws IoError when the program cannot be started.
pid_t start_process(const ProcessCommand& command);

// Direct children of this process that were not reaped yet, adopted orphans included.
std::vector<pid_t> child_processes();

// The descriptor of standard input, which from now on is /dev/null for this process and for what it
// starts. For a process that watches for the end of its input. Throws IoError.
int take_standard_input();

// 128 + signal when killed by one.
int exit_code_of(int wait_status);

// A folder that only this user can enter, removed with all that is in it by the destructor. Made in
// `base` (empty: $TMPDIR or /tmp). Throws IoError.
class PrivateFolder {
 public:
  explicit PrivateFolder(const std::string& base = {});
  ~PrivateFolder();
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace maniple

#include "launch/processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/errors.h"

namespace maniple {
namespace {

// Of a child between fork and exec: only calls that are safe there.
[[noreturn]] void become(const ProcessCommand& command, pid_t parent, char* const* arguments,
                         char* const* environment, int input, int report) {
  const auto give_up = [report] {
    const int error = errno;
    [[maybe_unused]] const ssize_t n = ::write(report, &error, sizeof error);
    ::_exit(127);
  };
  ::prctl(PR_SET_PDEATHSIG, command.death_signal);
  if (::getppid() != parent) ::_exit(127);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (command.own_group) ::setpgid(0, 0);
  if (input >= 0 && ::dup2(input, 0) < 0) give_up();
  if (!command.output.empty()) {
    const int fd = ::open(command.output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd < 0 || ::dup2(fd, 1) < 0 || ::dup2(fd, 2) < 0) give_up();
  }
  for (const int fd : command.keep)
    if (::fcntl(fd, F_SETFD, 0) != 0) give_up();
  ::execvpe(arguments[0], arguments, environment);
  give_up();
  ::_exit(127);
}

// A pipe's end from which these bytes can be read, then the end of file; with `held`, when that is
// closed. -1 for none.
int readable(const std::string& bytes, int* held) {
  int pipe[2];
  if (bytes.empty() || bytes.size() > 4096 || ::pipe2(pipe, O_CLOEXEC) != 0) return -1;
  [[maybe_unused]] const ssize_t n = ::write(pipe[1], bytes.data(), bytes.size());
  if (held)
    *held = pipe[1];
  else
    ::close(pipe[1]);
  return pipe[0];
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> environment_with(
    const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> result;
  for (char** at = environ; *at; ++at) {
    const std::string entry = *at;
    const std::string name = entry.substr(0, entry.find('='));
    bool replaced = false;
    for (const auto& [key, value] : added) replaced = replaced || key == name;
    if (!replaced) result.push_back(entry);
  }
  for (const auto& [key, value] : added) result.push_back(key + "=" + value);
  return result;
}

}  // namespace

void schedule_first() noexcept {
  const sched_param lowest = {.sched_priority = 1};
  ::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &lowest);
}

void become_subreaper() {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0)
    throw IoError(fmt::format("cannot become the subreaper of what is started here: {}",
                              std::strerror(errno)));
}

pid_t start_process(const ProcessCommand& command) {
  std::vector<std::string> arguments = command.arguments;
  std::vector<std::string> environment = environment_with(command.environment);
  const std::vector<char*> argument_pointers = pointers_to(arguments);
  const std::vector<char*> environment_pointers = pointers_to(environment);
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0)
    throw IoError(fmt::format("cannot start a process: {}", std::strerror(errno)));
  const int input = readable(command.input, command.held);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0)
    become(command, parent, argument_pointers.data(), environment_pointers.data(), input,
           report[1]);
  int error = child < 0 ? errno : 0;
  ::close(report[1]);
  if (input >= 0) ::close(input);
  // Ends with the exec, which closes the other end.
  if (child > 0 && ::read(report[0], &error, sizeof error) == sizeof error)
    ::waitpid(child, nullptr, 0);
  ::close(report[0]);
  if (error == 0) return child;
  if (command.held && *command.held >= 0) ::close(std::exchange(*command.held, -1));
  throw IoError(fmt::format("cannot start '{}': {}", command.arguments[0], std::strerror(error)));
}

std::vector<pid_t> child_processes() {
  std::vector<pid_t> result;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    std::ifstream file(task.path() / "children");
    if (!file) throw IoError("cannot read /proc/self/task/*/children: the kernel lacks it");
    for (pid_t pid = 0; file >> pid;) result.push_back(pid);
  }
  return result;
}

int take_standard_input() {
  const int taken = ::fcntl(0, F_DUPFD_CLOEXEC, 3);
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (taken < 0 || nothing < 0 || ::dup2(nothing, 0) < 0)
    throw IoError(fmt::format("cannot take standard input away: {}", std::strerror(errno)));
  ::close(nothing);
  return taken;
}

int exit_code_of(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

PrivateFolder::PrivateFolder(const std::string& base) {
  const char* standard = std::getenv("TMPDIR");
  path_ = (!base.empty() ? base : standard && *standard ? standard : "/tmp") + "/maniple-XXXXXX";
  if (!::mkdtemp(path_.data()))
    throw IoError(fmt::format("cannot make a private folder '{}': {}", path_, strerror(errno)));
}

PrivateFolder::~PrivateFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace maniple

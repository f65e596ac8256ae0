// The processes of a stand-in job, each a role of this program:
//   launch       coordinator and agents
//   coordinator, agent, slice (in place of mpirun), rank POSITION
//   straggler    a process that nobody waits for, in a session of its own, deaf to TERM
#include <signal.h>
#include <sys/wait.h>

#include <cstdio>

#include "core/errors.h"
#include "core/signals.h"
#include "job.h"
#include "launch/agent.h"
#include "launch/coordinator_shell.h"
#include "launch/job_token.h"
#include "launch/launcher.h"

namespace maniple::standin {
namespace {

std::string self() { return "/proc/self/exe"; }

int launch(const Settings& settings) {
  LauncherConfig config;
  config.run_dir = settings.run_dir;
  const char* token = std::getenv("JOB_TOKEN_FILE");
  config.token = token ? read_job_token(token) : make_job_token();
  config.num_slots = settings.coordinator().num_slots();
  config.coordinator = {self(), "coordinator"};
  config.agent = {self(), "agent"};
  config.timeouts = Timeouts(settings.lease);
  return Launcher(config).run();
}

int coordinate(const Settings& settings) {
  CoordinatorShellConfig config;
  config.job = settings.coordinator();
  config.run_dir = settings.run_dir;
  config.token = read_job_token("-");
  config.listener = std::atoi(std::getenv(kListenerVariable));
  return CoordinatorShell(config).run();
}

int be_agent(const Settings& settings) {
  AgentConfig config;
  config.slice = static_cast<SliceId>(std::atoi(std::getenv(kSliceVariable)));
  config.ranks = settings.ranks;
  config.host = fmt::format("{}", config.slice);
  config.address = "127.0.0.1";
  config.start = static_cast<uint32_t>(std::atoi(std::getenv(kStartVariable)));
  config.coordinator = std::getenv(kCoordinatorVariable);
  config.token = read_job_token("-");
  config.command = {self(), "slice"};
  config.output = fmt::format("{}/slice-{}.log", settings.run_dir, config.slice);
  config.folder = std::getenv(kFolderVariable);
  config.launcher = take_standard_input();
  config.timeouts = Timeouts(settings.lease);
  return Agent(config).run();
}

// Like mpirun: starts the ranks, ends all when one fails, returns its code. Slice JOB_REFUSES fails
// as a program does that finds no device, before its ranks have said a word to the agent.
int be_slice(const Settings& settings) {
  const char* refuses = std::getenv("JOB_REFUSES");
  if (refuses && std::string(refuses) == std::getenv(kSliceVariable)) {
    std::fprintf(stderr, "maniple: there is no such device\nand what mpirun says of it\n");
    return static_cast<int>(ExitCode::kConfig);
  }
  if (fork() == 0) {
    setsid();
    if (fork() != 0) _exit(0);
    execl("/proc/self/exe", "job", "straggler", nullptr);
    _exit(127);
  }
  std::vector<pid_t> ranks;
  for (uint32_t position = 0; position < settings.ranks; ++position) {
    const pid_t pid = fork();
    if (pid == 0) {
      const std::string text = fmt::format("{}", position);
      execl("/proc/self/exe", "job", "rank", text.c_str(), nullptr);
      _exit(127);
    }
    ranks.push_back(pid);
  }
  int code = 0;
  for (int status = 0; const pid_t pid = wait(&status);) {
    if (pid < 0) break;
    if (code == 0 && exit_code_of(status) != 0) {
      code = exit_code_of(status);
      for (const pid_t rank : ranks)
        if (rank != pid) kill(rank, SIGKILL);
    }
  }
  return code;
}

int run(const std::string& role, const std::string& argument) {
  const Settings settings = Settings::from_environment();
  if (role == "launch") return launch(settings);
  if (role == "coordinator") return coordinate(settings);
  if (role == "agent") return be_agent(settings);
  if (role == "slice") return be_slice(settings);
  if (role == "straggler") {
    signal(SIGTERM, SIG_IGN);
    for (;;) pause();
  }
  set_parent_death_signal();
  return run_rank(settings, static_cast<uint32_t>(std::stoi(argument)));
}

}  // namespace
}  // namespace maniple::standin

int main(int argc, char** argv) {
  if (argc < 2 || !std::getenv("JOB_RUN")) return 64;
  try {
    return maniple::standin::run(argv[1], argc > 2 ? argv[2] : "0");
  } catch (const maniple::Error& error) {
    std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
    return static_cast<int>(error.code());
  }
}

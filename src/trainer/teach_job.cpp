#include "trainer/teach_job.h"

#include <sys/wait.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "core/files.h"
#include "core/signals.h"
#include "launch/clock.h"
#include "launch/processes.h"
#include "trainer/elastic_plan.h"
#include "trainer/teach.h"

namespace maniple {
namespace {

struct Slice {
  pid_t pid = 0;  // of its mpirun; 0: not running
  int64_t failures = 0;
  Time start_at = 0;
  bool ended = false;  // is not started again
};

// Exit codes that the same command would end with again.
bool is_final(int code) {
  for (const ExitCode c : {ExitCode::kUsage, ExitCode::kData, ExitCode::kNoInput, ExitCode::kConfig})
    if (code == static_cast<int>(c)) return true;
  return false;
}

class Supervisor {
 public:
  Supervisor(const Config& config, const TeachJob& job)
      : config_(config), job_(job), logs_(config.distill.store + "/logs") {
    const std::string slice_size = std::to_string(slice_shape(config, 0).slice_size);
    command_ = {config.elastic.mpirun, "-n", slice_size,
                std::filesystem::read_symlink("/proc/self/exe").string(), "teach"};
    command_.insert(command_.end(), job.arguments.begin(), job.arguments.end());
    command_.push_back("parallel.slices=1");
    slices_.resize(static_cast<size_t>(config.parallel.slices));
    ensure_directory(logs_);
    become_subreaper();
    install_signals();
  }
  ~Supervisor() {
    for (std::vector<pid_t> left; !(left = child_processes()).empty();) {
      for (const pid_t pid : left) ::kill(pid, SIGKILL);
      ::waitpid(left.front(), nullptr, 0);
    }
  }

  ExitCode run() {
    for (bool told = false;;) {
      reap();
      if (complete_) return finish();
      if (stop_requested() && !std::exchange(told, true))
        for (const Slice& slice : slices_)
          if (slice.pid != 0) ::kill(slice.pid, SIGUSR1);  // TERM would leave the ranks no time
      bool running = false;
      for (size_t i = 0; i < slices_.size(); ++i) {
        Slice& slice = slices_[i];
        const bool start = slice.pid == 0 && !slice.ended && !told && monotonic_now() >= slice.start_at;
        if (start) this->start(i);
        running = running || slice.pid != 0 || (!slice.ended && !told);
      }
      if (!running) return told ? ExitCode::kPreempted : last_;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

 private:
  void start(size_t i) {
    ProcessCommand command;
    command.arguments = command_;
    command.environment = job_.environment;
    command.death_signal = SIGTERM;  // mpirun ends its ranks
    if (i > 0) command.output = log_of(i);
    slices_[i].pid = start_process(command);
  }
  std::string log_of(size_t i) const { return fmt::format("{}/slice-{}.log", logs_, i); }

  void reap() {
    int status = 0;
    for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;)
      for (size_t i = 0; i < slices_.size(); ++i)
        if (slices_[i].pid == pid) ended(i, exit_code_of(status));
    // What a killed mpirun left behind has come to this process.
    for (const pid_t pid : child_processes())
      if (std::none_of(slices_.begin(), slices_.end(), [&](const Slice& s) { return s.pid == pid; }))
        ::kill(pid, SIGKILL);
  }

  void ended(size_t i, int code) {
    Slice& slice = slices_[i];
    slice.pid = 0;
    if (code == 0) complete_ = true;
    slice.ended = code == 0 || code == static_cast<int>(ExitCode::kPreempted);
    if (slice.ended) return;
    last_ = static_cast<ExitCode>(code);
    slice.ended = is_final(code) || ++slice.failures > config_.elastic.max_restarts;
    if (stop_requested()) return;
    say(fmt::format("slice {} ended with {}{}; {}", i, code, i > 0 ? " (" + log_of(i) + ")" : "",
                    slice.ended ? "it is given up" : "it is started again"));
    if (!slice.ended)
      slice.start_at = monotonic_now() + (100 * kMillisecond << std::min<int64_t>(slice.failures - 1, 8));
  }

  // One slice has seen that all rows are there: the others are about to see it.
  ExitCode finish() {
    const Time patience = monotonic_now() + 10 * kSecond;
    while (monotonic_now() < patience &&
           std::any_of(slices_.begin(), slices_.end(), [](const Slice& s) { return s.pid != 0; })) {
      reap();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return ExitCode::kOk;
  }

  static void say(const std::string& text) {
    std::fputs((text + "\n").c_str(), stdout);
    std::fflush(stdout);
  }

  const Config& config_;
  const TeachJob& job_;
  const std::string logs_;
  std::vector<std::string> command_;
  std::vector<Slice> slices_;
  ExitCode last_ = ExitCode::kOk;
  bool complete_ = false;
};

}  // namespace

ExitCode run_teach_job(const Config& config, const TeachJob& job) {
  check_teach_config(config);
  if (!config.elastic.hosts.empty())
    throw ConfigError(fmt::format(
        "cannot teach on elastic.hosts={}: launch --teach starts slices on this machine only; run "
        "maniple teach with the same config on each host, they share the files of the store",
        config.elastic.hosts));
  return Supervisor(config, job).run();
}

}  // namespace maniple

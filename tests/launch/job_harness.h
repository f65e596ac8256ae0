// A stand-in job (job/job.h) under test: started as a person would start it, observed through its
// run folder and /proc, disturbed by signals. Only processes that carry the job's run folder in
// their environment are touched.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "job/job.h"
#include "launch/clock.h"
#include "launch/processes.h"

namespace maniple {

struct JobProcess {
  pid_t pid = 0;
  std::string role;
  std::map<std::string, std::string> environment;
  int slice() const {
    const auto at = environment.find("MANIPLE_SLICE");
    return at == environment.end() ? -1 : std::atoi(at->second.c_str());
  }
  std::string position;
};

class Job {
 public:
  using Options = std::vector<std::pair<std::string, std::string>>;
  explicit Job(const Options& options = {}, const std::string& run_dir = {})
      : dir_(run_dir.empty() ? folder_.path() + "/run" : run_dir) {
    std::filesystem::create_directories(dir_);
    ProcessCommand command;
    command.arguments = {MANIPLE_STANDIN, "launch"};
    command.environment = options;
    command.environment.push_back({"JOB_RUN", dir_});
    command.environment.push_back({"TMPDIR", folder_.path()});
    command.output = dir_ + "/output";
    pid_ = start_process(command);
  }
  ~Job() {
    if (pid_ != 0) ::kill(pid_, SIGKILL), wait();
    for (const JobProcess& p : processes()) ::kill(p.pid, SIGKILL);
    if (testing::Test::HasFailure()) {
      for (const char* name : {"output", "events.jsonl"})
        std::printf("--- %s\n%s", name, read(name).c_str());
    }
  }

  pid_t launcher() const { return pid_; }
  const std::string& dir() const { return dir_; }
  std::string temporary() const { return folder_.path(); }

  int wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return exit_code_of(status);
  }

  // Those that live; zombies have no environment.
  std::vector<JobProcess> processes(const std::string& role = {}, int slice = -1) const {
    std::vector<JobProcess> result;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != name.npos) continue;
      const auto environment = strings_of(entry.path() / "environ");
      JobProcess process;
      process.pid = std::atoi(name.c_str());
      for (const std::string& text : environment)
        process.environment[text.substr(0, text.find('='))] = text.substr(text.find('=') + 1);
      const auto run = process.environment.find("JOB_RUN");
      if (run == process.environment.end() || run->second != dir_) continue;
      const auto arguments = strings_of(entry.path() / "cmdline");
      process.role = arguments.size() > 1 ? arguments[1] : "?";
      process.position = arguments.size() > 2 ? arguments[2] : "";
      if (!role.empty() && process.role != role) continue;
      if (slice >= 0 && process.slice() != slice) continue;
      result.push_back(process);
    }
    return result;
  }
  // All of the slice but its agent.
  std::vector<JobProcess> slice_processes(int slice) const {
    std::vector<JobProcess> result = processes({}, slice);
    std::erase_if(result, [](const JobProcess& p) { return p.role == "agent"; });
    return result;
  }
  pid_t only(const std::string& role, int slice = -1) const {
    const auto found = processes(role, slice);
    EXPECT_EQ(found.size(), 1u) << role << " of slice " << slice;
    return found.empty() ? 0 : found[0].pid;
  }

  std::string read(const std::string& name) const {
    std::ifstream file(dir_ + "/" + name);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  std::vector<nlohmann::json> lines(const std::string& name) const {
    std::vector<nlohmann::json> result;
    std::istringstream text(read(name));
    for (std::string line; std::getline(text, line);)
      if (auto value = nlohmann::json::parse(line, nullptr, false); value.is_object())
        result.push_back(value);
    return result;
  }
  // How many events of this name there are whose text contains `part`.
  int events(const std::string& name, const std::string& part = {}) const {
    int count = 0;
    for (const auto& event : lines("events.jsonl"))
      count += event["event"] == name &&
               event["text"].get<std::string>().find(part) != std::string::npos;
    return count;
  }
  Step steps() const { return static_cast<Step>(lines("metrics.jsonl").size()); }

  // Lines of the ranks' history that begin so: {time, slice, text}.
  struct Moment {
    Time time = 0;
    int slice = 0, life = 0;
    std::string text;
  };
  std::vector<Moment> history(const std::string& begin) const {
    std::vector<Moment> result;
    std::istringstream text(read("history"));
    for (std::string line; std::getline(text, line);) {
      std::istringstream words(line);
      Moment moment;
      words >> moment.time >> moment.slice >> moment.life;
      std::getline(words >> std::ws, moment.text);
      if (moment.text.starts_with(begin)) result.push_back(moment);
    }
    return result;
  }

  // Observes until it holds; a minute without it is a failure.
  [[nodiscard]] bool until(const std::function<bool()>& what, double seconds = 60) const {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!what()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }

  // Every step once, with the loss that a run in which nothing fails has.
  void expect_all_losses(Step steps) const {
    const auto rows = lines("metrics.jsonl");
    ASSERT_EQ(rows.size(), static_cast<size_t>(steps));
    uint64_t value = standin::initial_value();
    for (Step step = 1; step <= steps; ++step) {
      uint64_t sum = 0;
      for (int unit = 0; unit < standin::kUnits; ++unit)
        sum += standin::unit_gradient(value, step, unit);
      value = standin::updated(value, sum);
      const auto& row = rows[static_cast<size_t>(step - 1)];
      ASSERT_EQ(row["step"], step);
      ASSERT_EQ(row["loss"].get<double>(), standin::loss_of(value)) << "step " << step;
    }
  }
  void expect_nothing_left() const {
    EXPECT_TRUE(until([&] { return processes().empty(); }, 20));
    for (const JobProcess& p : processes())
      ADD_FAILURE() << p.role << " " << p.position << " of slice " << p.slice() << " lives";
  }

 private:
  static std::vector<std::string> strings_of(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::vector<std::string> result;
    for (std::string text; std::getline(file, text, '\0');) result.push_back(text);
    return result;
  }

  PrivateFolder folder_;
  std::string dir_;
  pid_t pid_ = 0;
};

// Waits for the end of a process, its own child or not; the time at which it was noticed.
class EndWatch {
 public:
  explicit EndWatch(pid_t pid) : fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  ~EndWatch() { ::close(fd_); }
  EndWatch(const EndWatch&) = delete;
  EndWatch& operator=(const EndWatch&) = delete;
  Time wait() {
    pollfd ended = {fd_, POLLIN, 0};
    EXPECT_EQ(::poll(&ended, 1, 30000), 1);
    return monotonic_now();
  }

 private:
  int fd_;
};

}  // namespace maniple

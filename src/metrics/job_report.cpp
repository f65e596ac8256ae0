#include "metrics/job_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/errors.h"

namespace maniple {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

struct Entry {
  double at = 0;  // seconds of the machine's monotonic clock
  int64_t slice = 0, life = 0;
  std::string event;
  int64_t epoch = 0, step = 0;
};

// The JSON objects of a file's lines; a torn one is left out.
template <typename Take>
void for_each_record(const std::string& path, const Take& take) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto record = nlohmann::ordered_json::parse(line, nullptr, false);
    if (record.is_object()) take(record);
  }
}

std::vector<Entry> read_journal(const std::string& path, int64_t slice) {
  std::vector<Entry> entries;
  for_each_record(path, [&](const nlohmann::ordered_json& r) {
    entries.push_back({r.value("us", 0.0) / 1e6, slice, r.value("life", int64_t{0}),
                       r.value("event", ""), r.value("epoch", int64_t{0}), r.value("step", int64_t{0})});
  });
  return entries;
}

JobReport::Spent read_spent(const std::string& path, int64_t slice) {
  JobReport::Spent spent{slice, {}, 0};
  for_each_record(path, [&](const nlohmann::ordered_json& r) {
    if (r.value("event", "") != "spent") return;
    spent.memory_mib = std::max(spent.memory_mib, r.value("memory_rss_peak_mib", 0.0));
    const nlohmann::ordered_json phases = r.value("seconds", nlohmann::ordered_json::object());
    for (const auto& [phase, seconds] : phases.items()) {
      if (!phases.is_object() || !seconds.is_number()) continue;
      auto at = std::find_if(spent.seconds.begin(), spent.seconds.end(),
                             [&](const auto& known) { return known.first == phase; });
      if (at == spent.seconds.end()) at = spent.seconds.insert(at, {phase, 0.0});
      at->second += seconds.get<double>();
    }
  });
  return spent;
}

// How much later the clock of `mine` is than that of `first`, by the commits in both.
double clock_offset(const std::vector<Entry>& first, const std::vector<Entry>& mine) {
  std::map<std::pair<int64_t, int64_t>, double> commits;
  for (const Entry& e : first)
    if (e.event == "commit") commits[{e.epoch, e.step}] = e.at;
  std::vector<double> offsets;
  for (const Entry& e : mine)
    if (const auto at = commits.find({e.epoch, e.step}); e.event == "commit" && at != commits.end())
      offsets.push_back(e.at - at->second);
  if (offsets.empty()) return 0;
  std::nth_element(offsets.begin(), offsets.begin() + offsets.size() / 2, offsets.end());
  const double offset = offsets[offsets.size() / 2];
  return std::abs(offset) < 1 ? 0 : offset;  // one machine
}

std::map<int64_t, std::string> find_journals(const std::string& run_dir) {
  std::map<int64_t, std::string> files;  // by slice
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator(run_dir + "/elastic", none)) {
    int64_t slice = 0;
    int length = 0;
    const std::string name = file.path().filename();
    const bool journal = std::sscanf(name.c_str(), "slice-%ld.jsonl%n", &slice, &length) == 1;
    if (journal && length == static_cast<int>(name.size())) files[slice] = file.path();
  }
  return files;
}

std::vector<Entry> read_journals(const std::map<int64_t, std::string>& files) {
  std::vector<Entry> all, first;
  for (const auto& [slice, path] : files) {
    std::vector<Entry> journal = read_journal(path, slice);
    if (first.empty()) first = journal;
    const double offset = clock_offset(first, journal);
    for (Entry& e : journal) e.at -= offset;
    all.insert(all.end(), journal.begin(), journal.end());
  }
  std::stable_sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) { return a.at < b.at; });
  return all;
}

// What the journals say about an epoch.
struct Course {
  double restores = kNever, restored = 0, halted = kNever;
  int64_t from_step = 0;
  std::set<int64_t> slices;
  std::map<int64_t, double> commits, suspicions;  // by step, the first of all slices
};

std::map<int64_t, Course> courses_of(const std::vector<Entry>& journals) {
  std::map<int64_t, Course> courses;
  const auto first = [](std::map<int64_t, double>& times, const Entry& e) {
    times.try_emplace(e.step, e.at);
  };
  for (const Entry& e : journals) {
    if (e.epoch == 0) continue;
    Course& course = courses[e.epoch];
    if (e.event == "restore") {
      course.restores = std::min(course.restores, e.at);
      course.from_step = e.step;
      course.slices.insert(e.slice);
    } else if (e.event == "restored") {
      course.restored = std::max(course.restored, e.at);
    } else if (e.event == "halt") {
      course.halted = std::min(course.halted, e.at);
    } else if (e.event == "commit") {
      first(course.commits, e);
    } else if (e.event == "suspicion") {
      first(course.suspicions, e);
    }
  }
  std::erase_if(courses, [](const auto& c) { return c.second.restores == kNever; });
  return courses;
}

void add(JobReport::Times& to, const JobReport::Times& times) {
  to.steps += times.steps;
  to.redone += times.redone;
  to.replaying += times.replaying;
  to.interrupted += times.interrupted;
  to.agreeing += times.agreeing;
  to.restoring += times.restoring;
}

// Goes through the epochs in their order; every second between the first restore and the last commit
// is given to one purpose.
void measure(JobReport& report, const std::map<int64_t, Course>& courses) {
  const double start = courses.begin()->second.restores;
  double now = start;
  JobReport::Times before;  // of the next epoch
  for (auto at = courses.begin(); at != courses.end(); ++at) {
    const Course& course = at->second;
    const double next = std::next(at) == courses.end() ? kNever : std::next(at)->second.restores;
    const auto until = [&](double time) { return std::exchange(now, std::max(now, std::min(time, next))); };
    const auto spent = [&](double time) { const double from = until(time); return now - from; };
    before.agreeing += spent(course.restores);
    before.restoring += spent(course.restored);
    report.epochs.push_back({at->first, course.restores - start, course.from_step, 0,
                             {course.slices.begin(), course.slices.end()}, {}, before});
    add(report.times, std::exchange(before, {}));
    for (const auto& [step, time] : course.commits) {
      const bool again = step <= report.last_step;
      if (const auto doubt = course.suspicions.find(step); doubt != course.suspicions.end()) {
        report.times.steps += spent(doubt->second);
        report.times.replaying += spent(time);
      } else {
        (again ? report.times.redone : report.times.steps) += spent(time);
      }
      report.last_step = std::max(report.last_step, step);
      ++report.epochs.back().steps;
    }
    if (next == kNever) break;
    if (course.halted < kNever)
      (course.restored > 0 ? before.interrupted : before.restoring) += spent(course.halted);
  }
}

std::vector<JobReport::Life> lives_of(const std::vector<Entry>& journals, double start) {
  std::map<std::pair<int64_t, int64_t>, JobReport::Life> lives;
  for (const Entry& e : journals) {
    const double at = e.at - start;
    JobReport::Life& life =
        lives.try_emplace({e.slice, e.life}, JobReport::Life{e.slice, e.life, at, kNever, at}).first->second;
    if (e.event == "restored") life.trains = std::min(life.trains, at);
    life.end = at;
  }
  std::vector<JobReport::Life> result;
  for (auto& [key, life] : lives) {
    life.trains = std::min(life.trains, life.end);
    result.push_back(life);
  }
  return result;
}

// Why each epoch began, and what was found; of the last launch.
void read_events(JobReport& report, const std::string& path) {
  std::map<int64_t, std::string> causes;
  for_each_record(path, [&](const nlohmann::ordered_json& r) {
    const std::string event = r.value("event", ""), text = r.value("text", "");
    if (event == "epoch") {
      const int64_t number = std::atoll(text.c_str());
      if (number == 1) report.alarms.clear();
      if (const size_t colon = text.find(": "); colon != std::string::npos)
        causes[number] = text.substr(colon + 2);
    }
    const bool alarm = event.starts_with("sdc_") || event == "strike" || event == "slice_banned" ||
                       event == "rollback" || event == "checkpoint_failed" || event == "straggler";
    if (alarm) report.alarms.push_back(event + ": " + text);
  });
  for (JobReport::Epoch& epoch : report.epochs) epoch.cause = causes[epoch.number];
}

// "0-2,5"
std::string ranges(const std::vector<int64_t>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", numbers[i]);
    if (last > i) text += fmt::format("-{}", numbers[last]);
    i = last + 1;
  }
  return text;
}

std::string spent_table(const JobReport& report) {
  if (report.spent.empty()) return "";
  std::string text = "\ntime of a slice's steps at its leader, % (waiting for others is in exchange, vote, publish)\nslice";
  for (const auto& [phase, seconds] : report.spent[0].seconds) text += fmt::format(" {:>8}", phase);
  text += "   MiB a rank\n";
  for (const JobReport::Spent& spent : report.spent) {
    double sum = 0;
    for (const auto& [phase, seconds] : spent.seconds) sum += seconds;
    text += fmt::format("{:5}", spent.slice);
    for (const auto& [phase, seconds] : spent.seconds)
      text += fmt::format(" {:8.1f}", sum > 0 ? 100 * seconds / sum : 0);
    text += fmt::format(" {:12.0f}\n", spent.memory_mib);
  }
  return text;
}

std::string time_line(const JobReport& report, const ConsoleStyle& style) {
  constexpr int kLabel = 9;
  const int columns = std::max(20, style.width - kLabel);
  const double length = report.times.sum();
  const auto column = [&](double at) {
    return std::clamp(static_cast<int>(at / length * columns), 0, columns - 1);
  };
  std::map<int64_t, std::string> rows;
  for (const JobReport::Life& life : report.lives) {
    std::string& row = rows.try_emplace(life.slice, columns, ' ').first->second;
    for (int c = column(life.registered); c <= column(life.end); ++c) row[c] = c < column(life.trains) ? '.' : '=';
  }
  for (const JobReport::Epoch& epoch : report.epochs)
    for (const int64_t slice : epoch.slices) rows[slice][column(epoch.begin)] = '|';
  for (const JobReport::Life& life : report.lives)
    if (length - life.end > length / columns && life.end > life.trains) rows[life.slice][column(life.end)] = 'x';
  std::string text;
  for (const auto& [slice, row] : rows) text += fmt::format("slice {:<2} {}\n", slice, row);
  return text + fmt::format("{:>{}}0 s{:>{}.1f} s\n", "", kLabel, length, columns - 5) +
         "= trains   | begins an epoch   . waits for one   x ends\n";
}

}  // namespace

JobReport read_job_report(const std::string& run_dir) {
  const std::map<int64_t, std::string> files = find_journals(run_dir);
  const std::vector<Entry> journals = read_journals(files);
  if (journals.empty())
    throw NoInputError(fmt::format(
        "report of '{}': there is no elastic/slice-N.jsonl with entries in it; give the folder of a "
        "run of maniple launch",
        run_dir));
  const std::map<int64_t, Course> courses = courses_of(journals);
  if (courses.empty())
    throw DataError(fmt::format("report of '{}': no epoch began, so nothing was trained; see {}/logs",
                                run_dir, run_dir));
  JobReport report;
  measure(report, courses);
  report.lives = lives_of(journals, courses.begin()->second.restores);
  read_events(report, run_dir + "/events.jsonl");
  for (const auto& [slice, path] : files)
    if (JobReport::Spent spent = read_spent(path, slice); !spent.seconds.empty())
      report.spent.push_back(std::move(spent));
  return report;
}

std::string format_job_report(const JobReport& r, const ConsoleStyle& style) {
  const double length = r.times.sum();
  std::string text = fmt::format("{} steps in {}, goodput {:.3f}\n\n", r.last_step, format_duration(length), r.goodput());
  const std::pair<const char*, double> shares[] = {
      {"steps", r.times.steps},         {"steps done again after a rollback", r.times.redone},
      {"replays", r.times.replaying},   {"steps that were interrupted", r.times.interrupted},
      {"agreeing on the members, pauses", r.times.agreeing}, {"restoring state", r.times.restoring}};
  for (const auto& [name, seconds] : shares)
    text += fmt::format("{:34} {:10.3f} s {:7.2f} %\n", name, seconds, length > 0 ? 100 * seconds / length : 0);
  text += fmt::format("\n{:>5} {:>10} {:>10} {:>9} {:>7} {:>12} {:>9} {:>9}  {}\n", "epoch", "at s", "slices",
                      "from step", "steps", "interrupted", "agreeing", "restoring", "cause (times in ms)");
  for (const JobReport::Epoch& e : r.epochs)
    text += fmt::format("{:5} {:10.3f} {:>10} {:9} {:7} {:12.1f} {:9.1f} {:9.1f}  {}\n", e.number, e.begin,
                        ranges(e.slices), e.from_step, e.steps, 1e3 * e.before.interrupted,
                        1e3 * e.before.agreeing, 1e3 * e.before.restoring, e.cause);
  text += spent_table(r) + "\n" + time_line(r, style);
  if (!r.alarms.empty()) text += fmt::format("\n{}\n", fmt::join(r.alarms, "\n"));
  return text;
}

}  // namespace maniple

// What a person sees of a run: a start-up table, one aligned line per logged step and, on a
// terminal, a bar with ETA below them. Reads no clock: times come from the reports.
// Failures to write are ignored: a closed terminal is no reason to lose a run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "metrics/step_report.h"

namespace maniple {

struct ConsoleStyle {
  bool terminal = false;  // a bar is drawn and redrawn
  bool unicode = false;   // box drawing and block characters, else ASCII
  int width = 100;        // columns
};

// What `file` can show: terminal or not, its width, and UTF-8 by LC_ALL, LC_CTYPE or LANG.
ConsoleStyle detect_console_style(std::FILE* file);

struct TableSection {
  std::string title;
  std::vector<std::pair<std::string, std::string>> rows;  // name, value (UTF-8, one line)
};

// The text of a table, all sections equally wide; values longer than the width are cut.
std::string format_table(const std::vector<TableSection>& sections, const ConsoleStyle& style);

// "1.23k", "45.6M": three digits. "01:02:03", or "2d 03:04:05" above a day.
std::string format_count(double value);
std::string format_duration(double seconds);

// One aligned line, without newline: fixed columns, then the extra metrics as "name value".
std::string format_step(const StepReport& report, int64_t num_steps);

// The bar, without newline, at most style.width columns. An ETA below 0 is unknown.
std::string format_bar(const StepReport& report, int64_t num_steps, double eta_seconds,
                       const ConsoleStyle& style);

class Console {
 public:
  // `file` stays open while the console lives. `num_steps`: the last step of the run.
  Console(std::FILE* file, const ConsoleStyle& style, int64_t num_steps);
  ~Console();  // removes the bar
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  void table(const std::vector<TableSection>& sections);
  void step(const StepReport& report);
  void message(const std::string& text);  // a line of its own above the bar

 private:
  void print(const std::string& text);

  std::FILE* file_;
  ConsoleStyle style_;
  int64_t num_steps_;
  double seconds_per_step_ = 0;  // smoothed; 0: unknown
  std::string bar_;
};

}  // namespace maniple

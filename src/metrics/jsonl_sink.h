// metrics.jsonl and events.jsonl: one JSON object per line (docs/formats.md). A line is handed to
// the operating system by one write when it is complete, so a killed process leaves at most the
// last line unfinished; opening the file again removes such a rest. Doubles are written in the
// shortest form that reads back as the same bits; NaN and infinities, which JSON lacks, as null.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "metrics/step_report.h"

namespace maniple {

// One line of JSON without its newline. Bytes that are not UTF-8 become U+FFFD.
std::string to_json_line(const nlohmann::ordered_json& value);

// The object of a step. Keys, always these and in this order: step, loss, grad_norm, lr, tokens,
// tokens_per_s, aux_loss, z_loss; then state_fingerprint where there is one, then the extra ones,
// then the lists.
nlohmann::ordered_json to_json(const StepReport& report);

// Appends lines to a file. Not thread-safe. Throws IoError with the errno text when the file cannot
// be opened or a line cannot be written completely.
class JsonlFile {
 public:
  explicit JsonlFile(const std::string& path);
  ~JsonlFile();
  JsonlFile(const JsonlFile&) = delete;
  JsonlFile& operator=(const JsonlFile&) = delete;

  void write(const nlohmann::ordered_json& record);
  // A record that is one line of JSON already, as to_json_line makes it elsewhere.
  void write_line(std::string_view line);

 private:
  std::string path_;
  int fd_ = -1;
};

// metrics.jsonl.
class JsonlSink {
 public:
  explicit JsonlSink(const std::string& path) : file_(path) {}
  void write(const StepReport& report);
  // Another record, as of an evaluation; must not have the key "loss", which marks steps.
  void write(const nlohmann::ordered_json& record);

 private:
  JsonlFile file_;
};

// events.jsonl: {"time": "2026-01-31T12:00:00.000Z", "event": name, ...fields}.
class EventLog {
 public:
  explicit EventLog(const std::string& path) : file_(path) {}
  void write(std::chrono::system_clock::time_point time, std::string_view event,
             const nlohmann::ordered_json& fields = nlohmann::ordered_json::object());

 private:
  JsonlFile file_;
};

// Removes the records of steps after `last_step` from metrics.jsonl, as a run does that resumes
// from that step: every step then has one record. Lines that are no JSON objects are removed too.
// No file: nothing happens. Throws IoError.
void drop_steps_after(const std::string& path, int64_t last_step);

}  // namespace maniple

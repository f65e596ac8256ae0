#include "launch/run_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/errors.h"

namespace maniple {
namespace {

using Json = nlohmann::ordered_json;

// Of the last line that is a step's row; 0: none.
Step last_step_of(const std::string& path) {
  const std::string text = ::access(path.c_str(), F_OK) == 0 ? read_file(path, "metrics") : "";
  for (size_t end = text.size(); end > 0;) {
    const size_t newline = text.rfind('\n', end - 1);
    const size_t begin = newline == text.npos ? 0 : newline + 1;
    const Json record = Json::parse(text.substr(begin, end - begin), nullptr, false);
    if (record.is_object() && record.contains("loss") && record.contains("step") &&
        record["step"].is_number_integer())
      return record["step"].get<Step>();
    end = begin == 0 ? 0 : begin - 1;
  }
  return 0;
}

// The records of a row; none when something else is among them.
std::vector<Json> records_of(const MetricRow& row) {
  std::vector<Json> records;
  for (size_t begin = 0; begin < row.bytes.size();) {
    const size_t end = std::min(row.bytes.find('\n', begin), row.bytes.size());
    Json record = Json::parse(row.bytes.substr(begin, end - begin), nullptr, false);
    if (!record.is_object() || !record.contains("step") || record["step"] != row.step) return {};
    records.push_back(std::move(record));
    begin = end + 1;
  }
  return records;
}

}  // namespace

std::string decision_log_path(const std::string& run_dir) {
  return run_dir + "/elastic/decisions.log";
}

RunWriter::RunWriter(const std::string& dir) : dir_(dir), lock_(dir) {
  ensure_directory(dir_ + "/elastic");
  const std::string path = dir_ + "/elastic/rows";
  cursor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (cursor_ < 0) throw IoError(fmt::format("cannot open '{}': {}", path, std::strerror(errno)));
  Step noted = 0;
  if (::pread(cursor_, &noted, sizeof noted, 0) != sizeof noted) noted = 0;
  // The row is written before it is noted; a crash may lie between.
  rows_written_ = std::max(noted, last_step_of(dir_ + "/metrics.jsonl"));
  last_step_ = rows_written_;
  metrics_ = std::make_unique<JsonlFile>(dir_ + "/metrics.jsonl");
  events_ = std::make_unique<EventLog>(dir_ + "/events.jsonl");
}

RunWriter::~RunWriter() { ::close(cursor_); }

bool RunWriter::write_row(const MetricRow& row, const Json& extra) {
  records_ = records_of(row);
  const bool good = row.bytes.empty() || !records_.empty();
  for (Json& record : records_) {
    if (record.contains("loss")) {
      const auto now = std::chrono::steady_clock::now();
      const double seconds = std::chrono::duration<double>(now - last_record_).count();
      const auto steps = static_cast<double>(row.step - last_step_);
      record["tokens_per_s"] = record.value("tokens", 0.0) * steps / seconds;
      record.update(extra);
      last_record_ = now;
      last_step_ = row.step;
    }
    metrics_->write(record);
  }
  note_rows(row.step);
  return good;
}

void RunWriter::drop_rows(Step after) {
  metrics_.reset();
  drop_steps_after(dir_ + "/metrics.jsonl", after);
  metrics_ = std::make_unique<JsonlFile>(dir_ + "/metrics.jsonl");
  note_rows(after);
  last_step_ = after;
}

void RunWriter::note_rows(Step step) {
  rows_written_ = step;
  if (::pwrite(cursor_, &step, sizeof step, 0) != sizeof step)
    throw IoError(fmt::format("cannot write '{}/elastic/rows': {}", dir_, std::strerror(errno)));
}

void RunWriter::write_event(const std::string& event, const std::string& text) {
  events_->write(std::chrono::system_clock::now(), event, {{"text", text}});
}

}  // namespace maniple

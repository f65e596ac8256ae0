#include "metrics/jsonl_sink.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"
#include "core/text.h"

namespace maniple {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void fail_io(const char* attempt, const std::string& path, int error) {
  throw IoError(fmt::format("cannot {} '{}': {}", attempt, one_line(path), std::strerror(error)));
}

void append_json(const Json& value, std::string& out) {
  if (value.is_number_float()) {
    const double number = value.get<double>();
    out += std::isfinite(number) ? format_double(number) : "null";
  } else if (value.is_structured()) {
    const bool is_object = value.is_object();
    out += is_object ? '{' : '[';
    bool first = true;
    for (const auto& item : value.items()) {
      if (!first) out += ',';
      first = false;
      if (is_object) append_json(item.key(), out), out += ':';
      append_json(item.value(), out);
    }
    out += is_object ? '}' : ']';
  } else {
    out += value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
}

// Cuts what follows the last newline: the record that a killed process did not finish.
void remove_unfinished_line(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) fail_io("inspect", path, errno);
  if (!S_ISREG(info.st_mode)) return;
  off_t end = info.st_size;
  char buffer[4096];
  while (end > 0) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(sizeof buffer));
    const ssize_t n = ::pread(fd, buffer, static_cast<size_t>(end - begin), begin);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail_io("read", path, n < 0 ? errno : EIO);
    const size_t newline = std::string_view(buffer, static_cast<size_t>(n)).rfind('\n');
    end = newline == std::string_view::npos ? begin : begin + static_cast<off_t>(newline) + 1;
    if (newline != std::string_view::npos) break;
  }
  if (end != info.st_size && ::ftruncate(fd, end) != 0) fail_io("repair", path, errno);
}

}  // namespace

std::string to_json_line(const Json& value) {
  std::string line;
  append_json(value, line);
  return line;
}

JsonlFile::JsonlFile(const std::string& path) : path_(path) {
  do fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) fail_io("open", path, errno);
  try {
    remove_unfinished_line(fd_, path);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

JsonlFile::~JsonlFile() { ::close(fd_); }

void JsonlFile::write(const Json& record) { write_line(to_json_line(record)); }

void JsonlFile::write_line(std::string_view record) {
  const std::string line = std::string(record) + "\n";
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = ::write(fd_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io("append a record to", path_, errno);
    rest.remove_prefix(static_cast<size_t>(n));
  }
}

Json to_json(const StepReport& report) {
  Json record = {{"step", report.step},           {"loss", report.loss},
                 {"grad_norm", report.grad_norm}, {"lr", report.lr},
                 {"tokens", report.tokens},       {"tokens_per_s", report.tokens_per_s},
                 {"aux_loss", report.aux_loss},   {"z_loss", report.z_loss}};
  if (report.fingerprint) record["state_fingerprint"] = *report.fingerprint;
  for (const auto& [name, value] : report.extra) {
    MANIPLE_INVARIANT(!record.contains(name), "the metric {} is reported twice", name);
    record[name] = value;
  }
  for (const auto& [name, values] : report.lists) {
    MANIPLE_INVARIANT(!record.contains(name), "the metric {} is reported twice", name);
    record[name] = values;
  }
  return record;
}

void JsonlSink::write(const StepReport& report) { file_.write(to_json(report)); }

void JsonlSink::write(const Json& record) {
  MANIPLE_INVARIANT(record.is_object() && !record.contains("loss"),
                    "only a step has the key loss: {}", to_json_line(record));
  file_.write(record);
}

void EventLog::write(std::chrono::system_clock::time_point time, std::string_view event,
                     const Json& fields) {
  const auto since = std::chrono::floor<std::chrono::milliseconds>(time.time_since_epoch());
  const std::time_t seconds = std::chrono::floor<std::chrono::seconds>(since).count();
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  Json record = {{"time", fmt::format("{}.{:03}Z", text, since.count() - seconds * 1000)},
                 {"event", std::string(event)}};
  for (const auto& item : fields.items()) {
    MANIPLE_INVARIANT(!record.contains(item.key()), "the event {} gives {} twice", event,
                      item.key());
    record[item.key()] = item.value();
  }
  file_.write(record);
}

void drop_steps_after(const std::string& path, int64_t last_step) {
  if (!std::filesystem::exists(path)) return;
  const std::string text = read_file(path, "metrics");
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t newline = text.find('\n', begin);
    if (newline == text.npos) break;
    const std::string_view line = std::string_view(text).substr(begin, newline + 1 - begin);
    begin = newline + 1;
    const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object()) continue;
    const auto step = record.find("step");
    if (step == record.end() || !step->is_number_integer() || step->get<int64_t>() <= last_step) {
      kept += line;
    }
  }
  if (kept != text) write_file_atomic(path, kept);
}

}  // namespace maniple

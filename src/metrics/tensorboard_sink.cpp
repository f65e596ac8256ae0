#include "metrics/tensorboard_sink.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "core/errors.h"
#include "core/files.h"
#include "metrics/event_format.h"

namespace maniple {
namespace {

double seconds_of(TensorboardSink::Time time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

void add(Event& event, const std::string& tag, double value) {
  if (std::isfinite(value)) event.scalars.emplace_back(tag, static_cast<float>(value));
}

}  // namespace

TensorboardSink::TensorboardSink(const std::string& folder, Time now, int64_t first_step) {
  ensure_directory(folder);
  char host[256] = "localhost";
  gethostname(host, sizeof host - 1);
  // TensorBoard reads the files of a folder in the order of their names.
  const auto stamp = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch());
  path_ = fmt::format("{}/events.out.tfevents.{:013}.{}.{}", folder, stamp.count(), host, getpid());
  do fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) throw IoError(fmt::format("cannot open {}: {}", path_, std::strerror(errno)));
  Event version, start;
  version.wall_time = start.wall_time = seconds_of(now);
  version.file_version = kEventVersion;
  start.step = first_step;
  start.session_start = true;
  try {
    append(frame_record(encode_event(version)) + frame_record(encode_event(start)));
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

TensorboardSink::~TensorboardSink() { ::close(fd_); }

void TensorboardSink::write(Time time, const StepReport& report) {
  Event event;
  event.wall_time = seconds_of(time);
  event.step = report.step;
  add(event, "loss", report.loss);
  add(event, "grad_norm", report.grad_norm);
  add(event, "lr", report.lr);
  add(event, "tokens", static_cast<double>(report.tokens));
  add(event, "tokens_per_s", report.tokens_per_s);
  add(event, "aux_loss", report.aux_loss);
  add(event, "z_loss", report.z_loss);
  for (const auto& [name, value] : report.extra) add(event, name, value);
  for (const auto& [name, values] : report.lists)
    for (size_t i = 0; i < values.size(); ++i)
      add(event, fmt::format("{}/{}", name, i), values[i]);
  append(frame_record(encode_event(event)));
}

void TensorboardSink::write(Time time, const nlohmann::ordered_json& record) {
  Event event;
  event.wall_time = seconds_of(time);
  event.step = record.at("step").get<int64_t>();
  for (const auto& [name, value] : record.items())
    if (name != "step" && value.is_number()) add(event, name, value.get<double>());
  append(frame_record(encode_event(event)));
}

void TensorboardSink::append(const std::string& bytes) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const ssize_t n = ::write(fd_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError(fmt::format("cannot append to {}: {}", path_, std::strerror(errno)));
    rest.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace maniple

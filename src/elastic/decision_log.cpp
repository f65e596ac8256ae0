#include "elastic/decision_log.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

constexpr std::string_view kMagic("MANIPLE1", 8);
constexpr int64_t kAhead = 1 << 20;  // bytes allocated at a time

[[noreturn]] void fail(const char* attempt, const std::string& path) {
  throw IoError(
      fmt::format("cannot {} the decision log '{}': {}", attempt, path, std::strerror(errno)));
}

bool write_at(int fd, std::string_view bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += n;
  }
  return true;
}

void sync_folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool ok = fd >= 0 && ::fsync(fd) == 0;
  if (fd >= 0) ::close(fd);
  if (!ok) fail("sync the folder of", path);
}

}  // namespace

DecisionLog::DecisionLog(const std::string& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd_ < 0) fail("open", path_);
  try {
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) fail("lock", path_);
      throw IoError(
          fmt::format("cannot lock the decision log '{}': another coordinator of this job "
                      "runs; end it first",
                      path_));
    }
    load();
    sync_folder_of(path_);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

DecisionLog::~DecisionLog() {
  if (fd_ >= 0) ::close(fd_);
}

void DecisionLog::load() {
  const std::string bytes = read_file(path_, "decision log");
  const std::string_view all = bytes;
  const auto is_zero = [](std::string_view rest) {
    return std::all_of(rest.begin(), rest.end(), [](char c) { return c == 0; });
  };
  if (all.size() < kMagic.size() && (kMagic.starts_with(all) || is_zero(all))) {
    // New, or its creator died before the first sync.
    if (!write_at(fd_, kMagic, 0) || ::fsync(fd_) != 0) fail("begin", path_);
    end_ = reserved_ = static_cast<int64_t>(kMagic.size());
    return;
  }
  if (!all.starts_with(kMagic))
    throw DataError(
        fmt::format("'{}' is no decision log of this version; it begins with other bytes "
                    "than {}",
                    path_, kMagic));
  size_t at = kMagic.size();
  while (at < all.size()) {
    const FrameView frame = read_frame(all.substr(at));
    std::optional<LogRecord> record;
    if (frame.state == FrameState::kWhole) record = decode_record(frame.payload);
    if (frame.state == FrameState::kWhole && !record)
      throw DataError(
          fmt::format("'{}': the record at byte {} has a good checksum but is not known to "
                      "this version",
                      path_, at));
    if (!record) break;
    records_.push_back(*record);
    at += frame.size;
  }
  // What is left is the torn last record or space that was allocated ahead. A whole record after it
  // means that a record in the middle was damaged.
  const std::string_view rest = all.substr(at);
  const size_t written = rest.find_last_not_of('\0') + 1;
  for (size_t skip = 1; skip + kFrameHeader < written; ++skip)
    if (const FrameView later = read_frame(rest.substr(skip));
        later.state == FrameState::kWhole && decode_record(later.payload))
      throw DataError(
          fmt::format("'{}': the record at byte {} is damaged and others follow it; restore "
                      "the file, or start a new job from the last checkpoint",
                      path_, at));
  if (!rest.empty() && (::ftruncate(fd_, static_cast<off_t>(at)) != 0 || ::fsync(fd_) != 0))
    fail("repair", path_);
  end_ = reserved_ = static_cast<int64_t>(at);
}

History DecisionLog::history() const {
  History history;
  for (const LogRecord& record : records_) history.apply(record);
  return history;
}

void DecisionLog::reserve(int64_t bytes) {
  if (end_ + bytes <= reserved_) return;
  const int64_t more = std::max(bytes, kAhead);
  // Without the space this fails and the write below tries its luck with what there is.
  if (::posix_fallocate(fd_, end_, more) == 0) reserved_ = end_ + more;
}

void DecisionLog::append(const LogRecord& record) {
  if (failed_)
    throw IoError(fmt::format("the decision log '{}' failed before and takes no records", path_));
  const std::string frame = make_frame(encode_record(record));
  failed_ = true;
  reserve(static_cast<int64_t>(frame.size()));
  if (!write_at(fd_, frame, end_)) fail("append to", path_);
  if (::fdatasync(fd_) != 0) fail("sync", path_);
  failed_ = false;
  end_ += static_cast<int64_t>(frame.size());
}

}  // namespace maniple

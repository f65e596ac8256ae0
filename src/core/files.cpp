#include "core/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "core/errors.h"
#include "core/text.h"

namespace maniple {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

[[noreturn]] void fail_io(const char* attempt, const std::string& path, int error) {
  throw IoError(fmt::format("cannot {} '{}': {}", attempt, one_line(path), std::strerror(error)));
}

int open_retrying(const std::string& path, int flags, mode_t mode = 0666) {
  int fd;
  do fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

// Returns 0 or the errno.
int write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

}  // namespace

std::string read_file(const std::string& path, const std::string& what) {
  Descriptor file(open_retrying(path, O_RDONLY));
  if (file.get() < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      throw NoInputError(fmt::format("cannot read {} '{}': {}; name a file that exists", what,
                                     one_line(path), std::strerror(error)));
    }
    fail_io("read", path, error);
  }
  struct stat info {};
  if (::fstat(file.get(), &info) == 0 && S_ISDIR(info.st_mode)) fail_io("read", path, EISDIR);
  std::string bytes;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(file.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io("read", path, errno);
    if (n == 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(n));
  }
}

void write_file_atomic(const std::string& path, std::string_view bytes) {
  // The process id and a count keep the temporary files of ranks and threads apart.
  static std::atomic<uint64_t> count{0};
  const std::string temporary = fmt::format("{}.tmp.{}.{}", path, ::getpid(), count++);
  Descriptor file(open_retrying(temporary, O_WRONLY | O_CREAT | O_TRUNC));
  if (file.get() < 0) fail_io("write", path, errno);
  int error = write_all(file.get(), bytes);
  if (!error && ::fsync(file.get()) != 0) error = errno;
  if (::close(file.release()) != 0 && !error) error = errno;
  if (!error && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error) {
    ::unlink(temporary.c_str());
    fail_io("write", path, error);
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  Descriptor parent(open_retrying(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY));
  // EINVAL: a file system without sync of folders; the file is then as durable as it can be.
  if (parent.get() >= 0 && ::fsync(parent.get()) != 0 && errno != EINVAL) {
    fail_io("sync the folder of", path, errno);
  }
}

void ensure_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && !std::filesystem::is_directory(path, error) && !error) {
    error = std::make_error_code(std::errc::not_a_directory);
  }
  if (error) fail_io("create the folder", path, error.value());
}

RunLock::RunLock(const std::string& dir, double wait_seconds) {
  ensure_directory(dir);
  const std::string path = (std::filesystem::path(dir) / ".lock").string();
  Descriptor file(open_retrying(path, O_RDWR | O_CREAT));
  if (file.get() < 0) fail_io("open the lock", path, errno);
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_seconds);
  while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) fail_io("lock", path, errno);
    if (std::chrono::steady_clock::now() >= deadline) {
      char owner[32] = {};
      const ssize_t n = ::pread(file.get(), owner, sizeof owner - 1, 0);
      const std::string pid = one_line({owner, n > 0 ? std::strcspn(owner, "\n") : 0});
      throw IoError(fmt::format(
          "cannot use the run folder '{}': process {} held its lock for {} s; one run folder "
          "serves one job at a time; stop that job or set run.dir to another folder",
          one_line(dir), pid.empty() ? "(unknown)" : pid, wait_seconds));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  // The id only serves the message above: a failure to write it does not matter.
  if (::ftruncate(file.get(), 0) == 0) write_all(file.get(), fmt::format("{}\n", ::getpid()));
  fd_ = file.release();
}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

RunLock::RunLock(RunLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

RunLock& RunLock::operator=(RunLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

}  // namespace maniple

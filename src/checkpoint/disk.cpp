#include "checkpoint/disk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "core/errors.h"
#include "core/files.h"

namespace maniple::disk {
namespace {

[[noreturn]] void fail(const std::string& action, const std::string& path, int error) {
  throw IoError(
      fmt::format("checkpoint: cannot {} {}: {} (errno {}); check space, permissions and "
                  "quota of that file system",
                  action, path, std::strerror(error), error));
}

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Calls take(bytes, count) on all of the file; returns 0 or the errno.
template <typename Take>
int for_each_block(int fd, Take take) {
  std::vector<char> block(1 << 20);
  while (true) {
    const ssize_t count = read(fd, block.data(), block.size());
    if (count == 0) return 0;
    if (count > 0) {
      take(block.data(), static_cast<size_t>(count));
    } else if (errno != EINTR) {
      return errno;
    }
  }
}

void sync(const std::string& path, int flags) {
  const Descriptor file(path, flags);
  if (file.get() < 0) fail("open", path, errno);
  // Some file systems have no fsync for folders; nothing more can be done there.
  if (fsync(file.get()) != 0 && !((flags & O_DIRECTORY) && errno == EINVAL))
    fail("sync", path, errno);
}

}  // namespace

std::string hash_text(std::string_view text) {
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
}

FileHash hash_file(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0) fail("read", path, errno);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  int64_t bytes = 0;
  const int error = for_each_block(file.get(), [&](const char* data, size_t count) {
    XXH3_64bits_update(&state, data, count);
    bytes += static_cast<int64_t>(count);
  });
  if (error != 0) fail("read", path, error);
  return {bytes, fmt::format("{:016x}", XXH3_64bits_digest(&state))};
}

int64_t file_bytes(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return -1;
    fail("read", path, errno);
  }
  return info.st_size;
}

bool exists(const std::string& path) { return file_bytes(path) >= 0; }

bool read_text(const std::string& path, std::string& text) {
  if (!exists(path)) return false;
  try {
    text = read_file(path, "checkpoint file");
  } catch (const NoInputError&) {
    return false;  // removed since
  }
  return true;
}

void commit_file(const std::string& temporary, const std::string& path) {
  try {
    sync(temporary, O_RDONLY);
    rename(temporary, path);
  } catch (...) {
    unlink(temporary.c_str());
    throw;
  }
  sync_folder(std::filesystem::path(path).parent_path().string());
}

void rename(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    fail("rename", fmt::format("{} to {}", from, to), errno);
}

void sync_folder(const std::string& path) {
  sync(path.empty() ? "." : path, O_RDONLY | O_DIRECTORY);
}

bool exchange(const std::string& a, const std::string& b) {
  if (renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  fail("exchange", fmt::format("{} and {}", a, b), errno);
}

void remove_all(const std::string& path) noexcept {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

}  // namespace maniple::disk

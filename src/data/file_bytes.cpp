#include "data/file_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/errors.h"

namespace maniple {
namespace {

constexpr int64_t kMapFrom = 1 << 20;  // a folder may hold more small files than maps are allowed

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

[[noreturn]] void refuse(const std::string& path, const char* what, int error) {
  throw DataError(fmt::format("data file {}: {}: {}; a data file must be readable", path, what,
                              std::strerror(error)));
}

}  // namespace

FileBytes::FileBytes(const std::string& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) {
    if (errno == ENOENT || errno == ENOTDIR)
      throw NoInputError(
          fmt::format("data file {} does not exist; check data.sources[].path and kind", path));
    refuse(path, "open", errno);
  }
  struct stat status = {};
  if (::fstat(file.fd, &status) != 0) refuse(path, "stat", errno);
  if (!S_ISREG(status.st_mode))
    throw DataError(fmt::format("data file {} is not a regular file; name a regular file", path));
  size_ = status.st_size;
  if (size_ >= kMapFrom) {
    void* map = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file.fd, 0);
    if (map == MAP_FAILED) refuse(path, "mmap", errno);
    data_ = static_cast<const uint8_t*>(map);
    mapped_ = true;
    return;
  }
  copy_.resize(static_cast<size_t>(size_));
  for (int64_t at = 0; at < size_;) {
    const ssize_t got = ::read(file.fd, copy_.data() + at, static_cast<size_t>(size_ - at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(path, "read", errno);
    if (got == 0)
      throw DataError(
          fmt::format("data file {} shrank from {} to {} bytes while it was read; do "
                      "not write to a file in use",
                      path, size_, at));
    at += got;
  }
  data_ = copy_.data();
}

FileBytes::FileBytes(FileBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, false)),
      copy_(std::move(other.copy_)) {}

FileBytes::~FileBytes() {
  if (mapped_) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

}  // namespace maniple

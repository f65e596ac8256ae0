#include "interop/file_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/errors.h"

namespace maniple {

MappedFile::MappedFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string message =
        fmt::format("opening the weights {}: {}", path, std::strerror(errno));
    if (errno == ENOENT) throw NoInputError(message);
    throw IoError(message);
  }
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  size_ = regular ? static_cast<uint64_t>(status.st_size) : 0;
  void* mapping = MAP_FAILED;
  if (size_ > 0) mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_errno = errno;
  ::close(fd);
  if (!regular) throw IoError(fmt::format("opening the weights {}: not a regular file", path));
  if (size_ > 0 && mapping == MAP_FAILED)
    throw IoError(fmt::format("mapping the weights {}: {}", path, std::strerror(map_errno)));
  if (size_ > 0) data_ = static_cast<const char*>(mapping);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<char*>(data_), size_);
}

void MappedFile::copy(uint64_t offset, uint64_t size, void* to) const {
  MANIPLE_INVARIANT(size <= size_ && offset <= size_ - size, "bytes {} + {} of {}", offset, size,
                    size_);
  if (size == 0) return;
  std::memcpy(to, data_ + offset, size);
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page * page;
  ::madvise(const_cast<char*>(data_) + begin, offset + size - begin, MADV_DONTNEED);
}

OutputFile::OutputFile(const std::string& path)
    : path_(path), temporary_(fmt::format("{}.tmp.{}", path, ::getpid())) {
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("creating");
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void OutputFile::write(uint64_t offset, const void* bytes, uint64_t size) {
  const char* from = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t done = ::pwrite(fd_, from, size, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("writing");
    from += done;
    offset += static_cast<uint64_t>(done);
    size -= static_cast<uint64_t>(done);
  }
}

void OutputFile::finish() {
  if (::fsync(fd_) != 0) fail("syncing");
  const int fd = fd_;
  fd_ = -1;
  const bool closed = ::close(fd) == 0;
  if (!closed || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    errno = error;
    fail("replacing");
  }
}

void OutputFile::fail(const std::string& action) const {
  throw IoError(fmt::format("{} the weights {}: {}", action, path_, std::strerror(errno)));
}

}  // namespace maniple

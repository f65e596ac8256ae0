#include "data/hashed_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "core/errors.h"

namespace maniple {
namespace {

constexpr int64_t kKeepBelow = 1 << 20;

class OpenFile {
 public:
  explicit OpenFile(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ >= 0) return;
    if (errno == ENOENT || errno == ENOTDIR)
      throw NoInputError(
          fmt::format("data file {} does not exist; check data.sources[].path and kind", path));
    refuse("open");
  }
  ~OpenFile() { ::close(fd_); }
  OpenFile(const OpenFile&) = delete;

  int64_t size() const {
    struct stat status = {};
    if (::fstat(fd_, &status) != 0) refuse("stat");
    if (!S_ISREG(status.st_mode))
      throw DataError(fmt::format("data file {} is not a regular file; name a regular file", path_));
    return status.st_size;
  }

  void read(int64_t offset, std::span<uint8_t> out) const {
    for (size_t done = 0; done < out.size();) {
      const ssize_t got =
          ::pread(fd_, out.data() + done, out.size() - done, offset + static_cast<int64_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) refuse("read");
      if (got == 0)
        throw DataError(fmt::format(
            "data file {} ends at byte {}, where it had {} more when it was opened; restore it, and "
            "do not write to a file in use",
            path_, offset + static_cast<int64_t>(done), out.size() - done));
      done += static_cast<size_t>(got);
    }
  }

 private:
  [[noreturn]] void refuse(const char* what) const {
    throw DataError(fmt::format("data file {}: {}: {}; a data file must be readable", path_, what,
                                std::strerror(errno)));
  }

  const std::string& path_;
  const int fd_;
};

}  // namespace

HashedFile::HashedFile(const std::string& path, const See& see) : path_(path) {
  const OpenFile file(path);
  size_ = file.size();
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const std::unique_ptr<XXH3_state_t, Free> whole(XXH3_createState());
  XXH3_64bits_reset(whole.get());
  if (size_ < kKeepBelow) copy_.resize(static_cast<size_t>(size_));
  std::vector<uint8_t> buffer(static_cast<size_t>(std::min(size_, kChunk)));
  for (int64_t begin = 0; begin < size_; begin += kChunk) {
    const std::span chunk(buffer.data(), static_cast<size_t>(std::min(kChunk, size_ - begin)));
    file.read(begin, chunk);
    XXH3_64bits_update(whole.get(), chunk.data(), chunk.size());
    chunk_hash_.push_back(XXH3_64bits(chunk.data(), chunk.size()));
    if (!copy_.empty()) std::copy(chunk.begin(), chunk.end(), copy_.begin() + begin);
    if (see) see(begin, chunk);
  }
  hash_ = XXH3_64bits_digest(whole.get());
}

void HashedFile::read(int64_t offset, std::span<uint8_t> out) const {
  const auto end = offset + static_cast<int64_t>(out.size());
  MANIPLE_INVARIANT(offset >= 0 && end <= size_, "bytes {} to {} of {} with {}", offset, end, path_, size_);
  if (out.empty()) return;
  std::unique_ptr<OpenFile> file;
  std::vector<uint8_t> buffer;
  if (copy_.empty()) {
    file = std::make_unique<OpenFile>(path_);
    buffer.resize(static_cast<size_t>(kChunk));
  }
  for (int64_t begin = offset / kChunk * kChunk; begin < end; begin += kChunk) {
    const int64_t length = std::min(kChunk, size_ - begin);
    if (file) file->read(begin, {buffer.data(), static_cast<size_t>(length)});
    const uint8_t* chunk = file ? buffer.data() : copy_.data() + begin;
    if (XXH3_64bits(chunk, static_cast<size_t>(length)) != chunk_hash_[static_cast<size_t>(begin / kChunk)])
      throw DataError(fmt::format(
          "data file {}: bytes {} to {} have changed since it was opened; restore it, and do not "
          "write to a file in use",
          path_, begin, begin + length - 1));
    const int64_t from = std::max(begin, offset), to = std::min(begin + length, end);
    std::copy(chunk + (from - begin), chunk + (to - begin), out.data() + (from - offset));
  }
}

}  // namespace maniple

// The bytes of a file from which rows are read again and again: what is read must have the hash that
// it had when the file was opened (layer L8 of docs/corruption.md).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace maniple {

// Small files are kept in memory, large ones are opened for each read, so the number of files is
// not limited and one that is cut short cannot kill the process. Immutable, any thread.
class HashedFile {
 public:
  static constexpr int64_t kChunk = 1 << 16;  // bytes with one hash
  using See = std::function<void(int64_t offset, std::span<const uint8_t> chunk)>;

  // Reads the whole file once, chunk by chunk. Throws NoInputError when it does not exist, DataError
  // when it is not a regular, readable file.
  explicit HashedFile(const std::string& path, const See& see = {});

  int64_t size() const { return size_; }
  uint64_t hash() const { return hash_; }  // XXH3 of all bytes
  // The bytes from `offset` on. Throws NoInputError when the file has gone and DataError when the
  // chunks that hold them cannot be read or have changed.
  void read(int64_t offset, std::span<uint8_t> out) const;

 private:
  std::string path_;
  int64_t size_ = 0;
  uint64_t hash_ = 0;
  std::vector<uint64_t> chunk_hash_;
  std::vector<uint8_t> copy_;  // of a small file
};

}  // namespace maniple

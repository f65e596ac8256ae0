// Bytes of files of weights: a file mapped for reading, and one written in pieces that appears
// under its name only when it is whole.
#pragma once

#include <cstdint>
#include <string>

namespace maniple {

// Mapped read-only for the life of the object.
class MappedFile {
 public:
  // Throws NoInputError (no such file) and IoError.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  uint64_t size() const { return size_; }
  // Copies bytes [offset, offset + size) and lets go of their pages, which come back when needed.
  void copy(uint64_t offset, uint64_t size, void* to) const;

 private:
  const char* data_ = nullptr;
  uint64_t size_ = 0;
};

// Pieces may be written in any order, none twice. Until finish() they lie in a temporary file
// beside `path`; without it nothing appears there.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);  // throws IoError, as do the others
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(uint64_t offset, const void* bytes, uint64_t size);
  void finish();  // syncs and renames into place

 private:
  [[noreturn]] void fail(const std::string& action) const;

  std::string path_, temporary_;
  int fd_ = -1;
};

}  // namespace maniple

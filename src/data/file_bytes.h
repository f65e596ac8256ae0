// The bytes of a file, read-only.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace maniple {

// Large files are mapped (ranks of one host share the pages), small ones are read. The file must
// not shrink while the object lives. Throws NoInputError when the file does not exist and DataError
// when it is not a regular, readable file.
class FileBytes {
 public:
  explicit FileBytes(const std::string& path);
  ~FileBytes();
  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, static_cast<size_t>(size_)}; }

 private:
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  bool mapped_ = false;
  std::vector<uint8_t> copy_;
};

}  // namespace maniple

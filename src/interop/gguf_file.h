// GGUF files, version 3 (spec/model.md 4.6): metadata, a table of tensors, aligned data. Reader and
// writer share this header. What a file claims is checked on opening, before any of it is used; a
// violation is a DataError naming the file.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "interop/file_bytes.h"

namespace maniple {

// Types of tensors, with the format's numbers.
enum class GgufType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ8_0 = 8, kBF16 = 30 };
const char* gguf_type_name(GgufType type);
int64_t gguf_block(GgufType type);                    // elements that are stored together
int64_t gguf_bytes(GgufType type, int64_t elements);  // elements: whole blocks

// Values of the metadata: what this program writes, and what it understands when reading (integers
// of every width become uint32_t or int64_t, reals float or double).
using GgufValue = std::variant<uint32_t, int64_t, float, double, bool, std::string,
                               std::vector<std::string>, std::vector<int32_t>, std::vector<float>>;
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first, as everywhere in this program
  GgufType type = GgufType::kF32;
  int64_t elements() const;
};

// Written tensor by tensor, each in one or more pieces of whole blocks, in any order.
class GgufWriter {
 public:
  GgufWriter(const std::string& path, const GgufMetadata& metadata,
             std::vector<GgufTensor> tensors);
  // `bytes` encoded elements [first, first + n) of a tensor, in the order of memory.
  void write(const std::string& tensor, int64_t first, const std::string& bytes);
  void finish();  // every byte must have been written

 private:
  struct Slot {
    GgufTensor tensor;
    uint64_t offset;  // in the file
    int64_t written = 0;
  };
  OutputFile file_;
  std::map<std::string, Slot> slots_;
};

class GgufFile {
 public:
  // Throws NoInputError, IoError, DataError.
  explicit GgufFile(const std::string& path);

  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }
  // Elements [first, first + n) (whole blocks) decoded: BF16, F16 and F32 as they are, blocks to
  // F32.
  at::Tensor read(const std::string& tensor, int64_t first, int64_t n) const;

 private:
  std::string path_;
  MappedFile file_;
  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, GgufTensor> tensors_;
  std::map<std::string, uint64_t> begin_;  // of a tensor's bytes, in the file
};

}  // namespace maniple

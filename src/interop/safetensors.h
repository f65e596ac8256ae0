// Safetensors files: u64 little-endian header length, a JSON header (name -> dtype, shape,
// data_offsets), raw little-endian data without holes. Reader and writer share this header.
//
// Contents of a file come from outside: everything the header claims is checked on opening, before
// any of it is used, and a violation is a DataError that names the file and the tensor.
#pragma once

#include <map>
#include <memory>

#include "interop/file_bytes.h"
#include "interop/hub_tensors.h"

namespace maniple {

// The tensors that a header declares, in the order of their bytes. `path` names it in messages.
// Throws DataError.
std::vector<SafetensorsEntry> parse_safetensors_header(const std::string& path,
                                                       const std::string& header);

// A file, memory-mapped, of types F64 F32 BF16 F16 I64 I32. Reading is const and safe from several
// threads.
class SafetensorsFile {
 public:
  // Throws NoInputError (no such file), IoError, DataError (header).
  explicit SafetensorsFile(const std::string& path);

  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  // A copy on the CPU that outlives the file. `name` must be in entries().
  at::Tensor read(const std::string& name) const;
  const std::string& path() const { return path_; }
  // The header's bytes, padding included: what a copy of the layout needs.
  std::string header() const;

 private:
  std::string path_;
  MappedFile file_;
  uint64_t data_ = 0;  // where the data begin, behind the header
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, uint64_t> begin_;  // of a tensor's bytes, in the data
};

// The tensors of a hub folder: shards listed by model.safetensors.index.json, or model.safetensors
// alone. A path of one file is accepted too. Tensors of a shard that the index does not list do not
// exist, as in Hugging Face.
class SafetensorsFolder : public HubTensors {
 public:
  // Throws as SafetensorsFile does; a bad index or a tensor that its shard lacks is a DataError.
  explicit SafetensorsFolder(const std::string& path);

  bool has(const std::string& name) const override { return files_of_.count(name) > 0; }
  std::vector<std::string> names() const override;
  const SafetensorsEntry& entry(const std::string& name) const override;
  at::Tensor read(const std::string& name) const override;
  const std::string& path() const override { return path_; }
  // File name -> header, of every file that the folder's tensors lie in.
  std::map<std::string, std::string> headers() const;

 private:
  void open_sharded(const std::string& index_path);
  const SafetensorsFile& file_of(const std::string& name) const;

  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*> files_of_;
};

// Writes a file of tensors that need not be in memory together. The layout is that of the reference
// implementation (type, then name; "__metadata__": {"format": "pt"}), so that a file which it wrote
// comes back byte for byte.
//
//   SafetensorsWriter writer("model.safetensors", entries);
//   for (const auto& entry : entries) writer.write(entry.name, tensor_of(entry.name));
//   writer.finish();
//
// Until finish() the bytes lie in a temporary file beside `path`; without it nothing appears there.
class SafetensorsWriter {
 public:
  // Writes the header. Types F64, F32, BF16, F16, I64, I32; names must differ. Throws IoError.
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries);
  // The same with the header of another file, byte for byte. Throws DataError if it is not one.
  SafetensorsWriter(const std::string& path, const std::string& header);

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the file's order
  // Each declared tensor once, in any order; type and shape as declared. Throws IoError.
  void write(const std::string& name, const at::Tensor& tensor);
  // Syncs and renames into place. Every tensor must have been written. Throws IoError.
  void finish();

 private:
  struct Slot {
    SafetensorsEntry entry;
    uint64_t offset;  // in the file
    bool written = false;
  };
  void write_header(const std::string& text);

  OutputFile file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, Slot> slots_;
};

}  // namespace maniple

// The table of a checkpoint, shared by its writer and its readers: which tensors there are, which
// files, and which stored pieces make up each tensor. A part's sidecar has the same form for one
// file. Text form: docs/formats.md.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/layout.h"

namespace maniple {

inline constexpr int64_t kCheckpointVersion = 1;

struct PartEntry {
  std::string name;  // "part-00003.h5"
  int64_t bytes = 0;
  std::string xxh3;
};

// A run of a shard (see TensorSlice), stored without its padding as one 1-D dataset.
struct Piece {
  int64_t tensor = 0, file = 0;  // indices in the manifest
  std::string dataset;
  std::vector<int64_t> offset, shape;
  int64_t begin = 0, end = 0;
};

struct Manifest {
  int64_t step = 0, num_writers = 0;
  std::string attempt;
  std::vector<TensorEntry> tensors;
  std::vector<PartEntry> files;
  std::vector<Piece> pieces;
  nlohmann::json meta = nlohmann::json::object();

  TensorSlice slice(const Piece& piece) const;  // without data
};

const char* element_type_name(ElementType type);
// "f32 [4, 5]"
std::string describe(ElementType type, const std::vector<int64_t>& global_shape);

std::string manifest_text(const Manifest& manifest);
// Checks the hash, the version and that every number is possible. Throws CheckpointError; `source`
// is the name in its message.
Manifest parse_manifest(const std::string& text, const std::string& source);
// Reads FOLDER/manifest.json. Throws CheckpointError, also if there is none.
Manifest read_manifest(const std::string& folder);

// Adds a part's tables. Throws InternalError if the writers disagree on a tensor.
void merge_part(Manifest& manifest, const Manifest& part);

struct StoredSegment {
  int64_t global, local, count;  // local: index in the piece's dataset
  size_t piece;
};
// What is stored of a tensor, ascending, given the indices of its pieces. Throws CheckpointError
// unless every element is there exactly once.
std::vector<StoredSegment> stored_tensor(const Manifest& manifest, size_t tensor,
                                         const std::vector<size_t>& pieces,
                                         const std::string& source);
// The indices of the pieces of each tensor.
std::vector<std::vector<size_t>> pieces_by_tensor(const Manifest& manifest);

}  // namespace maniple

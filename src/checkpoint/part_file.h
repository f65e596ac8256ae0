// One writer's HDF5 file. With hdf5_output.h the only place that speaks to HDF5.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"

namespace maniple {

// Writes the slices, less their padding, to `path` and syncs it; the table of what is in it comes
// back (one file, its tensors and pieces). Throws IoError; then no file is left.
Manifest write_part_file(const std::string& path, int64_t step, int writer,
                         const std::vector<TensorSlice>& slices);

// `count` stored values from index `from` of a dataset go to `to`.
struct PartRead {
  int64_t from, count;
  char* to;
};

// A part open for reading. Throws CheckpointError.
class PartReader {
 public:
  explicit PartReader(const std::string& path);
  ~PartReader();
  PartReader(const PartReader&) = delete;
  PartReader& operator=(const PartReader&) = delete;

  // `reads` ascending by `from`. The dataset must hold `stored` values of this type.
  void read(const std::string& dataset, ElementType type, int64_t stored,
            const std::vector<PartRead>& reads);

 private:
  std::string path_;
  int64_t file_;  // an HDF5 identifier
};

}  // namespace maniple

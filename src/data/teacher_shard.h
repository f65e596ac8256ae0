// One file of a teacher store: some rows of one source. HDF5, little-endian, contiguous datasets
// (docs/formats.md):
//   rows [n] i64 ascending, entries_begin [n + 1] i64 (bytes), row_hash [n] u64,
//   mass, label_logp [n, seq_len] half, entries [bytes] u8
// The attributes source (u64), source_path and header (the text of header.json) belong to the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/teacher_format.h"

namespace maniple {

// The bytes of such a file; equal contents give equal bytes. rows: numbers within the source.
std::string shard_image(const TeacherHeader& header, uint64_t source, const std::string& source_path,
                        const std::vector<int64_t>& rows, const std::vector<TeacherRow>& contents);

class TeacherShard {
 public:
  // Reads the tables; the rows themselves stay in the file. Throws DataError if the file is not one
  // of the store with this header.
  TeacherShard(const std::string& path, const TeacherHeader& header, const std::string& header_text);

  const std::string& path() const { return path_; }
  uint64_t source() const { return source_; }
  const std::vector<int64_t>& rows() const { return rows_; }
  int64_t file_bytes() const { return file_bytes_; }

  // Row number rows()[i]. Throws DataError naming file and row if its hash is wrong. Thread-safe.
  TeacherRow read(size_t i) const;

 private:
  std::string path_;
  const TeacherHeader& header_;
  uint64_t source_ = 0;
  int64_t file_bytes_ = 0;
  std::vector<int64_t> rows_, begin_;
  std::vector<uint64_t> hash_;
  int64_t entries_at_ = 0, mass_at_ = 0, label_at_ = 0;  // offsets in the file
};

}  // namespace maniple

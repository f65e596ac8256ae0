// A teacher store: a folder with header.json and files of rows (data/teacher_shard.h), each written
// whole or not at all. Keyed by sample, so teacher and student may differ in seed, order, blend,
// layout and micro-batch. Format: docs/formats.md.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/row_source.h"
#include "data/teacher_shard.h"

namespace maniple {

class TeacherStore {
 public:
  // Reads the header and the tables of all files. Throws NoInputError if there is no such store,
  // DataError for a damaged or foreign one and for a row that two files hold.
  explicit TeacherStore(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const TeacherHeader& header() const { return *header_; }
  const std::vector<TeacherShard>& shards() const { return shards_; }
  int64_t num_rows() const { return static_cast<int64_t>(index_.size()); }
  bool has(const SampleId& sample) const { return find(sample) != nullptr; }
  // Throws DataError if the store lacks the sample or its bytes are damaged. Thread-safe.
  TeacherRow read(const SampleId& sample) const;

 private:
  struct Place {
    SampleId sample;
    uint32_t shard, row;
  };
  const Place* find(const SampleId& sample) const;

  std::string folder_;
  std::unique_ptr<TeacherHeader> header_;  // shards refer to it
  std::vector<TeacherShard> shards_;
  std::vector<Place> index_;  // ascending
};

// Makes `folder` a store with this header, or checks that it is one of equal targets (DataError names
// what differs), and returns the header that its files have. `alone`: nobody else writes there
// (data/teacher_writers.h); what killed writers left unfinished is removed.
TeacherHeader prepare_teacher_store(const std::string& folder, const TeacherHeader& header, bool alone);

// The file whose first row is this one.
std::string teacher_shard_path(const std::string& folder, uint64_t source, int64_t first_row);

// Adds a file with rows that the store does not have yet. Returns its bytes. Throws IoError.
int64_t add_teacher_rows(const std::string& folder, const TeacherHeader& header, uint64_t source,
                         const std::string& source_path, const std::vector<int64_t>& rows,
                         const std::vector<TeacherRow>& contents);

}  // namespace maniple

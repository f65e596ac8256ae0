#include "data/teacher_store.h"

#include <algorithm>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

std::string header_path(const std::string& folder) { return folder + "/header.json"; }

// The files of rows, sorted by name.
std::vector<std::string> list_shards(const std::string& folder) {
  std::vector<std::string> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".h5") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

TeacherStore::TeacherStore(const std::string& folder) : folder_(folder) {
  if (!fs::exists(header_path(folder)))
    throw NoInputError(fmt::format(
        "teacher store {} does not exist: it has no header.json; write it with maniple teach, or "
        "correct distill.store",
        folder));
  const std::string text = read_file(header_path(folder), "teacher store");
  header_ = std::make_unique<TeacherHeader>(parse_header(text, header_path(folder)));
  for (const std::string& path : list_shards(folder)) {
    shards_.emplace_back(path, *header_, text);
    const TeacherShard& shard = shards_.back();
    for (size_t i = 0; i < shard.rows().size(); ++i)
      index_.push_back({{shard.source(), shard.rows()[i]},
                        static_cast<uint32_t>(shards_.size() - 1), static_cast<uint32_t>(i)});
  }
  std::sort(index_.begin(), index_.end(),
            [](const Place& a, const Place& b) { return a.sample < b.sample; });
  for (size_t i = 1; i < index_.size(); ++i)
    if (index_[i].sample == index_[i - 1].sample)
      throw DataError(fmt::format(
          "teacher store: row {} of source {:016x} is in both {} and {}; a row is stored once; "
          "remove one of the files",
          index_[i].sample.row, index_[i].sample.source, shards_[index_[i - 1].shard].path(),
          shards_[index_[i].shard].path()));
}

const TeacherStore::Place* TeacherStore::find(const SampleId& sample) const {
  const auto at = std::lower_bound(index_.begin(), index_.end(), sample,
                                   [](const Place& p, const SampleId& s) { return p.sample < s; });
  return at != index_.end() && at->sample == sample ? &*at : nullptr;
}

TeacherRow TeacherStore::read(const SampleId& sample) const {
  const Place* place = find(sample);
  if (!place)
    throw DataError(fmt::format(
        "teacher store {} has no targets for row {} of source {:016x}; every row that is trained on "
        "needs them; run maniple teach with this config to add them",
        folder_, sample.row, sample.source));
  return shards_[place->shard].read(place->row);
}

TeacherHeader prepare_teacher_store(const std::string& folder, const TeacherHeader& header,
                                    bool alone) {
  ensure_directory(folder);
  std::error_code ignored;
  if (alone)
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
      if (entry.path().filename().string().find(".tmp") != std::string::npos)
        fs::remove(entry.path(), ignored);
  const std::string path = header_path(folder);
  if (!fs::exists(path)) write_file_atomic(path, header_text(header));
  const TeacherHeader stored = parse_header(read_file(path, "teacher store"), path);
  const std::string differs = header_difference(stored, header);
  if (!differs.empty())
    throw DataError(fmt::format(
        "cannot extend teacher store {}: {}; a store is written by one teacher with one choice of "
        "targets; restore the values, or name another folder in distill.store",
        folder, differs));
  return stored;
}

std::string teacher_shard_path(const std::string& folder, uint64_t source, int64_t first_row) {
  return fmt::format("{}/{:016x}-{:010}.h5", folder, source, first_row);
}

int64_t add_teacher_rows(const std::string& folder, const TeacherHeader& header, uint64_t source,
                         const std::string& source_path, const std::vector<int64_t>& rows,
                         const std::vector<TeacherRow>& contents) {
  const std::string image = shard_image(header, source, source_path, rows, contents);
  write_file_atomic(teacher_shard_path(folder, source, rows.at(0)), image);
  return static_cast<int64_t>(image.size());
}

}  // namespace maniple

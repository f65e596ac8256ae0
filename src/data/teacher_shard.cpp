#include "data/teacher_shard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "core/errors.h"
#include "core/half.h"
#include "hdf5/handle.h"

namespace maniple {
namespace {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian");

uint64_t row_hash(int64_t row, const std::string& entries, const uint16_t* mass,
                  const uint16_t* label_logp, int64_t seq_len) {
  const auto bytes = static_cast<size_t>(seq_len) * 2;
  uint64_t h = XXH3_64bits_withSeed(entries.data(), entries.size(), static_cast<uint64_t>(row));
  h = XXH3_64bits_withSeed(mass, bytes, h);
  return XXH3_64bits_withSeed(label_logp, bytes, h);
}

hid_t ok(hid_t id, const char* what) {
  MANIPLE_INVARIANT(id >= 0, "cannot make {} of a teacher store in memory: {}", what, hdf5_reason());
  return id;
}

void put_attribute(hid_t file, const char* name, const std::string& text) {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
  H5Tset_size(type.get(), std::max<size_t>(1, text.size()));
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  const Hdf5Handle attribute(
      ok(H5Acreate2(file, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), name), H5Aclose);
  ok(H5Awrite(attribute.get(), type.get(), text.empty() ? "" : text.data()), name);
}

template <typename T>
void put_dataset(hid_t file, const char* name, hid_t type, const std::vector<hsize_t>& dims,
                 const T* values) {
  const Hdf5Handle create(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(create.get(), false);
  H5Pset_alloc_time(create.get(), H5D_ALLOC_TIME_EARLY);
  const Hdf5Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
                         H5Sclose);
  const Hdf5Handle data(
      ok(H5Dcreate2(file, name, type, space.get(), H5P_DEFAULT, create.get(), H5P_DEFAULT), name),
      H5Dclose);
  ok(H5Dwrite(data.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), name);
}

// What a damaged file may lack; refused with its name.
struct Opened {
  Opened(const std::string& path)
      : path(path), file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, hdf5_file_access().get()), H5Fclose) {
    require(file.get() >= 0, hdf5_reason());
  }
  void require(bool holds, const std::string& why) const {
    if (!holds)
      throw DataError(fmt::format("teacher store: {}: {}; the file is damaged or of another store: "
                                  "remove it and run maniple teach again",
                                  path, why));
  }
  // A contiguous dataset of `count` values of `type`; its offset in the file.
  Hdf5Handle dataset(const char* name, hid_t type, int64_t count, int64_t& offset) const {
    Hdf5Handle data(H5Dopen2(file.get(), name, H5P_DEFAULT), H5Dclose);
    require(data.get() >= 0, fmt::format("it has no dataset {}", name));
    const Hdf5Handle stored(H5Dget_type(data.get()), H5Tclose), space(H5Dget_space(data.get()), H5Sclose);
    const auto have = static_cast<int64_t>(H5Sget_simple_extent_npoints(space.get()));
    require(H5Tequal(stored.get(), type) > 0 && (count < 0 || have == count),
            fmt::format("dataset {} is not of the type and size that the header asks for", name));
    const haddr_t at = H5Dget_offset(data.get());
    require(have == 0 || at != HADDR_UNDEF, fmt::format("dataset {} is not contiguous", name));
    offset = have == 0 ? 0 : static_cast<int64_t>(at);
    return data;
  }
  template <typename T>
  std::vector<T> values(const char* name, hid_t type, int64_t count) const {
    int64_t ignored;
    const Hdf5Handle data = dataset(name, type, count, ignored);
    const Hdf5Handle space(H5Dget_space(data.get()), H5Sclose);
    const auto n = static_cast<int64_t>(H5Sget_simple_extent_npoints(space.get()));
    struct stat info {};
    require(::stat(path.c_str(), &info) == 0 && n * static_cast<int64_t>(sizeof(T)) <= info.st_size,
            fmt::format("dataset {} is larger than the file", name));
    std::vector<T> out(static_cast<size_t>(n));
    require(out.empty() || H5Dread(data.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()) >= 0,
            hdf5_reason());
    return out;
  }
  std::string text(const char* name) const {
    const Hdf5Handle attribute(H5Aopen(file.get(), name, H5P_DEFAULT), H5Aclose);
    require(attribute.get() >= 0, fmt::format("it has no attribute {}", name));
    const Hdf5Handle type(H5Aget_type(attribute.get()), H5Tclose);
    const Hdf5Handle space(H5Aget_space(attribute.get()), H5Sclose);
    require(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 &&
                H5Sget_simple_extent_npoints(space.get()) == 1 && H5Tget_size(type.get()) < 1 << 20,
            fmt::format("attribute {} is not a text", name));
    std::string out(H5Tget_size(type.get()), '\0');
    require(H5Aread(attribute.get(), type.get(), out.data()) >= 0, hdf5_reason());
    return out;
  }

  const std::string path;
  const Hdf5Handle file;
};

}  // namespace

std::string shard_image(const TeacherHeader& header, uint64_t source, const std::string& source_path,
                        const std::vector<int64_t>& rows, const std::vector<TeacherRow>& contents) {
  std::vector<uint16_t> mass, label_logp;
  std::vector<int64_t> begin = {0};
  std::vector<uint64_t> hash;
  std::string entries;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (float x : contents[i].mass) mass.push_back(half_bits(x));
    for (float x : contents[i].label_logp) label_logp.push_back(half_bits(x));
    const std::string packed = pack_entries(contents[i], header.targets);
    const size_t at = i * static_cast<size_t>(header.seq_len);
    hash.push_back(row_hash(rows[i], packed, mass.data() + at, label_logp.data() + at, header.seq_len));
    entries += packed;
    begin.push_back(static_cast<int64_t>(entries.size()));
  }

  const Hdf5Scope scope;
  const Hdf5Handle access = hdf5_file_access();
  H5Pset_fapl_core(access.get(), 1 << 20, /*backing_store=*/false);
  const Hdf5Handle file(ok(H5Fcreate("teacher", H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), "a file"),
                        H5Fclose);
  const Hdf5Handle half = hdf5_two_byte_float(10);
  put_attribute(file.get(), "header", header_text(header));
  put_attribute(file.get(), "source", fmt::format("{:016x}", source));
  put_attribute(file.get(), "source_path", source_path);
  const hsize_t n = rows.size(), S = static_cast<hsize_t>(header.seq_len);
  put_dataset(file.get(), "rows", H5T_STD_I64LE, {n}, rows.data());
  put_dataset(file.get(), "entries_begin", H5T_STD_I64LE, {n + 1}, begin.data());
  put_dataset(file.get(), "row_hash", H5T_STD_U64LE, {n}, hash.data());
  put_dataset(file.get(), "mass", half.get(), {n, S}, mass.data());
  put_dataset(file.get(), "label_logp", half.get(), {n, S}, label_logp.data());
  put_dataset(file.get(), "entries", H5T_STD_U8LE, {entries.size()}, entries.data());
  ok(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "a file");
  const ssize_t size = H5Fget_file_image(file.get(), nullptr, 0);
  ok(size, "an image");
  std::string image(static_cast<size_t>(size), '\0');
  ok(H5Fget_file_image(file.get(), image.data(), image.size()), "an image");
  return image;
}

TeacherShard::TeacherShard(const std::string& path, const TeacherHeader& header,
                           const std::string& header_text)
    : path_(path), header_(header) {
  const Hdf5Scope scope;
  const Opened file(path);
  file.require(file.text("header") == header_text, "its header is not that of the store");
  const std::string source = file.text("source");
  file.require(source.size() == 16 && source.find_first_not_of("0123456789abcdef") == source.npos,
               "its source is not a hash");
  source_ = std::stoull(source, nullptr, 16);
  rows_ = file.values<int64_t>("rows", H5T_STD_I64LE, -1);
  const auto n = static_cast<int64_t>(rows_.size());
  begin_ = file.values<int64_t>("entries_begin", H5T_STD_I64LE, n + 1);
  hash_ = file.values<uint64_t>("row_hash", H5T_STD_U64LE, n);
  const Hdf5Handle half = hdf5_two_byte_float(10);
  file.dataset("mass", half.get(), n * header.seq_len, mass_at_);
  file.dataset("label_logp", half.get(), n * header.seq_len, label_at_);
  file.dataset("entries", H5T_STD_U8LE, begin_.back(), entries_at_);
  file.require(begin_[0] == 0 && std::is_sorted(begin_.begin(), begin_.end()),
               "its rows of entries are out of order");
  file.require(std::adjacent_find(rows_.begin(), rows_.end(), std::greater_equal<>()) == rows_.end() &&
                   (rows_.empty() || rows_[0] >= 0),
               "its row numbers are out of order");
  struct stat info {};
  file.require(::stat(path.c_str(), &info) == 0, std::strerror(errno));
  file_bytes_ = info.st_size;
}

TeacherRow TeacherShard::read(size_t i) const {
  const std::string place = fmt::format("{}: row {} of source {:016x}", path_, rows_[i], source_);
  auto refuse = [&](const std::string& why) {
    return DataError(fmt::format("teacher store: {}: {}; the store is damaged: remove this file and "
                                 "run maniple teach again",
                                 place, why));
  };
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw refuse(std::strerror(errno));
  std::string failure;
  auto get = [&](void* to, int64_t bytes, int64_t at) {
    for (auto* out = static_cast<char*>(to); bytes > 0 && failure.empty();) {
      const ssize_t n = ::pread(fd, out, static_cast<size_t>(bytes), at);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) failure = n < 0 ? std::strerror(errno) : "the file ends before it";
      out += n, at += n, bytes -= n;
    }
  };
  const int64_t S = header_.seq_len, row_bytes = 2 * S, at = static_cast<int64_t>(i) * row_bytes;
  std::vector<uint16_t> mass(static_cast<size_t>(S)), label_logp(mass);
  std::string entries(static_cast<size_t>(begin_[i + 1] - begin_[i]), '\0');
  get(mass.data(), row_bytes, mass_at_ + at);
  get(label_logp.data(), row_bytes, label_at_ + at);
  get(entries.data(), static_cast<int64_t>(entries.size()), entries_at_ + begin_[i]);
  ::close(fd);
  if (!failure.empty()) throw refuse(failure);
  if (row_hash(rows_[i], entries, mass.data(), label_logp.data(), S) != hash_[i])
    throw refuse("its hash is not the one that was written with it");
  TeacherRow row;
  for (uint16_t x : mass) row.mass.push_back(half_value(x));
  for (uint16_t x : label_logp) row.label_logp.push_back(half_value(x));
  unpack_entries(entries, header_, place, row);
  return row;
}

}  // namespace maniple

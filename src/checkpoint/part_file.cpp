#include "checkpoint/part_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "checkpoint/disk.h"
#include "core/errors.h"
#include "hdf5/handle.h"
#include "hdf5/hdf5_output.h"

namespace maniple {
namespace {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian");
static_assert(sizeof(hid_t) == sizeof(int64_t));

// Values that lie apart in memory are gathered, and small reads that lie near each other in the
// file are made as one, in a buffer of this size.
constexpr int64_t kBufferBytes = int64_t{4} << 20;
constexpr int64_t kNearBytes = int64_t{64} << 10;

// ErrorType(message) if an HDF5 call returned a negative value, else the value.
template <typename ErrorType, typename Value>
Value check(Value value, const char* action, const std::string& path) {
  if (value < 0)
    throw ErrorType(fmt::format("checkpoint part: cannot {} {}: {}", action, path, hdf5_reason()));
  return value;
}

Hdf5Handle element_type(ElementType type) {
  switch (type) {
    case ElementType::kF32:
      return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
    case ElementType::kF64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
    case ElementType::kI64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
    case ElementType::kBf16:
      break;
  }
  return hdf5_two_byte_float(7);
}

class PartWriter {
 public:
  explicit PartWriter(const std::string& path)
      : path_(path),
        file_(path),
        make_groups_(H5Pcreate(H5P_LINK_CREATE), H5Pclose),
        create_(H5Pcreate(H5P_DATASET_CREATE), H5Pclose) {
    ok(file_.id(), "create");
    H5Pset_create_intermediate_group(make_groups_.get(), 1);
    H5Pset_fill_time(create_.get(), H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(create_.get(), false);  // equal contents, equal bytes
  }

  void describe(int64_t step, int writer) {
    attribute(file_.id(), "maniple_checkpoint_version", {kCheckpointVersion});
    attribute(file_.id(), "step", {step});
    attribute(file_.id(), "writer", {writer});
  }

  void add(const std::string& dataset, const TensorSlice& slice,
           const std::vector<Segment>& segments) {
    const auto stored = static_cast<hsize_t>(num_elements(segments));
    const Hdf5Handle type = element_type(slice.type);
    const Hdf5Handle space(H5Screate_simple(1, &stored, nullptr), H5Sclose);
    const Hdf5Handle data(ok(H5Dcreate2(file_.id(), dataset.c_str(), type.get(), space.get(),
                                    make_groups_.get(), create_.get(), H5P_DEFAULT),
                         "write"),
                      H5Dclose);
    attribute(data.get(), "global_shape", slice.global_shape);
    attribute(data.get(), "offset", slice.offset);
    attribute(data.get(), "shape", slice.shape);
    attribute(data.get(), "run", {slice.begin, slice.end});
    write_values(data.get(), type.get(), space.get(), slice, segments);
  }

  void close() {
    ok(H5Fflush(file_.id(), H5F_SCOPE_GLOBAL), "write");
    ok(file_.close(), "close");
  }

 private:
  template <typename Value>
  Value ok(Value value, const char* action) {
    if (file_.error() != 0)
      throw IoError(fmt::format("checkpoint part: cannot {} {}: {}", action, path_,
                                std::strerror(file_.error())));
    return check<IoError>(value, action, path_);
  }

  void attribute(hid_t object, const char* name, const std::vector<int64_t>& values) {
    const hsize_t count = values.size();
    const Hdf5Handle space(count ? H5Screate_simple(1, &count, nullptr) : H5Screate(H5S_NULL),
                       H5Sclose);
    const Hdf5Handle attribute(
        ok(H5Acreate2(object, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), "write"),
        H5Aclose);
    if (count) ok(H5Awrite(attribute.get(), H5T_STD_I64LE, values.data()), "write");
  }

  void write_values(hid_t data, hid_t type, hid_t space, const TensorSlice& slice,
                    const std::vector<Segment>& segments) {
    const int64_t bytes = element_bytes(slice.type);
    const char* values = static_cast<const char*>(slice.data) - slice.begin * bytes;
    int64_t position = 0;
    const auto put = [&](const char* from, int64_t count) {
      const auto start = static_cast<hsize_t>(position), size = static_cast<hsize_t>(count);
      const Hdf5Handle memory(H5Screate_simple(1, &size, nullptr), H5Sclose);
      ok(H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, nullptr, &size, nullptr), "write");
      ok(H5Dwrite(data, type, memory.get(), space, H5P_DEFAULT, from), "write");
      position += count;
    };
    std::vector<char> gathered;
    const auto put_gathered = [&] {
      if (!gathered.empty()) put(gathered.data(), static_cast<int64_t>(gathered.size()) / bytes);
      gathered.clear();
    };
    for (const Segment& segment : segments) {
      const char* from = values + segment.local * bytes;
      const int64_t size = segment.count * bytes;
      if (static_cast<int64_t>(gathered.size()) + size > kBufferBytes) put_gathered();
      if (segments.size() == 1 || size > kBufferBytes) {
        put(from, segment.count);
      } else {
        gathered.insert(gathered.end(), from, from + size);
      }
    }
    put_gathered();
  }

  std::string path_;
  Hdf5Output file_;
  Hdf5Handle make_groups_, create_;
};

// The names become paths in an HDF5 file.
void check_slices(const std::vector<TensorSlice>& slices) {
  std::map<std::string, const TensorSlice*> seen;
  std::set<std::string> groups;
  for (const TensorSlice& slice : slices) {
    const std::string padded = "/" + slice.name + "/";
    MANIPLE_INVARIANT(!slice.name.empty() && padded.find("//") == std::string::npos &&
                          padded.find("/./") == std::string::npos,
                      "'{}' cannot name a stored tensor", slice.name);
    const size_t rank = slice.global_shape.size();
    MANIPLE_INVARIANT(slice.offset.size() == rank && slice.shape.size() == rank &&
                          slice.begin >= 0 && slice.begin <= slice.end &&
                          slice.end <= num_elements(slice.shape),
                      "slice of '{}' with elements {} to {} does not fit its shape", slice.name,
                      slice.begin, slice.end);
    const TensorSlice& first = *seen.emplace(slice.name, &slice).first->second;
    MANIPLE_INVARIANT(first.type == slice.type && first.global_shape == slice.global_shape,
                      "tensor '{}' is both {} and {}", slice.name,
                      describe(first.type, first.global_shape),
                      describe(slice.type, slice.global_shape));
    for (size_t at = slice.name.find('/'); at != std::string::npos;
         at = slice.name.find('/', at + 1))
      groups.insert(slice.name.substr(0, at));
  }
  for (const auto& [name, slice] : seen)
    MANIPLE_INVARIANT(!groups.count(name), "'{}' is a tensor and a folder of tensors", name);
}

Manifest write_hdf5(const std::string& path, int64_t step, int writer,
                    const std::vector<TensorSlice>& slices) {
  std::map<std::string, int64_t> num_slices, tensor_index, num_written;
  for (const TensorSlice& slice : slices) ++num_slices[slice.name];

  const Hdf5Scope scope;
  Manifest part;
  PartWriter file(path);
  file.describe(step, writer);
  for (const TensorSlice& slice : slices) {
    const auto [at, added] =
        tensor_index.emplace(slice.name, static_cast<int64_t>(part.tensors.size()));
    if (added) part.tensors.push_back({slice.name, slice.type, slice.global_shape});
    const std::vector<Segment> segments = shard_segments(slice);
    if (segments.empty()) continue;
    std::string dataset = "/" + slice.name;
    if (num_slices[slice.name] > 1) dataset += fmt::format("/{}", num_written[slice.name]++);
    file.add(dataset, slice, segments);
    part.pieces.push_back(
        {at->second, 0, dataset, slice.offset, slice.shape, slice.begin, slice.end});
  }
  file.close();
  return part;
}

}  // namespace

Manifest write_part_file(const std::string& path, int64_t step, int writer,
                         const std::vector<TensorSlice>& slices) {
  check_slices(slices);
  const std::string temporary = path + ".tmp";
  try {
    Manifest part = write_hdf5(temporary, step, writer, slices);
    const disk::FileHash hash = disk::hash_file(temporary);
    part.files.push_back({std::filesystem::path(path).filename().string(), hash.bytes, hash.xxh3});
    disk::commit_file(temporary, path);
    return part;
  } catch (...) {
    disk::remove_all(temporary);
    throw;
  }
}

PartReader::PartReader(const std::string& path) : path_(path) {
  const Hdf5Scope scope;
  file_ = check<CheckpointError>(H5Fopen(path.c_str(), H5F_ACC_RDONLY, hdf5_file_access().get()), "open",
                                 path);
}

PartReader::~PartReader() {
  const Hdf5Scope scope;
  H5Fclose(file_);
}

void PartReader::read(const std::string& dataset, ElementType type, int64_t stored,
                      const std::vector<PartRead>& reads) {
  const Hdf5Scope scope;
  const std::string place = path_ + ":" + dataset;
  const Hdf5Handle data(
      check<CheckpointError>(H5Dopen2(file_, dataset.c_str(), H5P_DEFAULT), "read", place),
      H5Dclose);
  const Hdf5Handle memory_type = element_type(type), file_type(H5Dget_type(data.get()), H5Tclose);
  const Hdf5Handle space(H5Dget_space(data.get()), H5Sclose);
  if (H5Tequal(file_type.get(), memory_type.get()) <= 0 ||
      H5Sget_simple_extent_ndims(space.get()) != 1 ||
      H5Sget_simple_extent_npoints(space.get()) != stored)
    throw CheckpointError(
        fmt::format("checkpoint part: {} is not the list of {} values of type {} that the manifest "
                    "promises",
                    place, stored, element_type_name(type)));

  const auto get = [&](int64_t from, int64_t count, char* to) {
    const auto start = static_cast<hsize_t>(from), size = static_cast<hsize_t>(count);
    const Hdf5Handle memory(H5Screate_simple(1, &size, nullptr), H5Sclose);
    check<CheckpointError>(
        H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &size, nullptr), "read",
        place);
    check<CheckpointError>(
        H5Dread(data.get(), memory_type.get(), memory.get(), space.get(), H5P_DEFAULT, to), "read",
        place);
  };
  const int64_t bytes = element_bytes(type);
  std::vector<char> buffer;
  for (size_t first = 0, last; first < reads.size(); first = last) {
    // reads[first, last) lie near each other and fit the buffer, or there is only one.
    int64_t end = reads[first].from + reads[first].count;
    for (last = first + 1; last < reads.size(); ++last) {
      const int64_t next_end = std::max(end, reads[last].from + reads[last].count);
      if ((reads[last].from - end) * bytes > kNearBytes ||
          (next_end - reads[first].from) * bytes > kBufferBytes)
        break;
      end = next_end;
    }
    if (last == first + 1) {
      get(reads[first].from, reads[first].count, reads[first].to);
      continue;
    }
    const int64_t start = reads[first].from;
    buffer.resize(static_cast<size_t>((end - start) * bytes));
    get(start, end - start, buffer.data());
    for (size_t i = first; i < last; ++i)
      std::memcpy(reads[i].to, buffer.data() + (reads[i].from - start) * bytes,
                  static_cast<size_t>(reads[i].count * bytes));
  }
}

}  // namespace maniple

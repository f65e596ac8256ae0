#include "interop/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr int kMaxDepth = 3;                  // {name: {shape: [..]}}
constexpr uint64_t kAlignment = 8;
constexpr const char* kMetadata = "__metadata__";

struct DtypeName {
  const char* name;
  at::ScalarType type;
  bool writable;
};

// In the order in which the reference implementation lays tensors out.
constexpr DtypeName kDtypes[] = {
    {"I64", at::ScalarType::Long, true},      {"F64", at::ScalarType::Double, true},
    {"F32", at::ScalarType::Float, true},     {"I32", at::ScalarType::Int, false},
    {"BF16", at::ScalarType::BFloat16, true}, {"F16", at::ScalarType::Half, false},
};

const DtypeName* find_dtype(const std::string& name) {
  for (const DtypeName& dtype : kDtypes)
    if (name == dtype.name) return &dtype;
  return nullptr;
}

const DtypeName* find_dtype(at::ScalarType type) {
  for (const DtypeName& dtype : kDtypes)
    if (type == dtype.type) return &dtype;
  return nullptr;
}

std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

// Parses JSON that may be hostile: duplicate keys and needless nesting are errors, since readers
// disagree about them.
json parse_strictly(const std::string& text, const std::string& what, int max_depth) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      if (depth >= max_depth)
        throw DataError(fmt::format("{}: nested deeper than {} levels", what, max_depth));
      if (event == json::parse_event_t::object_start) keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key && !keys.back().insert(parsed).second) {
      throw DataError(fmt::format("{}: the key {} appears twice", what, shown(parsed)));
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    throw DataError(fmt::format("{}: not valid JSON ({})", what, error.what()));
  }
}

// Bytes of a tensor, or nothing where the product does not fit.
bool tensor_bytes(const SafetensorsEntry& entry, uint64_t* bytes) {
  uint64_t product = c10::elementSize(entry.dtype);
  for (const int64_t extent : entry.shape)
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(extent), &product)) return false;
  *bytes = product;
  return product <= static_cast<uint64_t>(INT64_MAX);
}

struct ParsedEntry {
  SafetensorsEntry entry;
  uint64_t begin, end;
};

// `where` names file and tensor in messages.
ParsedEntry parse_entry(const std::string& where, const std::string& name, const json& fields) {
  if (!fields.is_object() || fields.size() != 3 || !fields.contains("dtype") ||
      !fields.contains("shape") || !fields.contains("data_offsets"))
    throw DataError(fmt::format("{}: {}: must hold exactly dtype, shape and data_offsets", where,
                                shown(fields)));
  const json& dtype = fields["dtype"];
  const DtypeName* type = dtype.is_string() ? find_dtype(dtype.get<std::string>()) : nullptr;
  if (!type)
    throw DataError(fmt::format("{}: dtype {} is not supported; F64 F32 BF16 F16 I64 I32 are",
                                where, shown(dtype)));
  ParsedEntry parsed{{name, type->type, {}}, 0, 0};

  const json& shape = fields["shape"];
  bool valid = shape.is_array() && shape.size() <= 64;
  for (size_t i = 0; valid && i < shape.size(); ++i) {
    valid = shape[i].is_number_unsigned() &&
            shape[i].get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
    if (valid) parsed.entry.shape.push_back(shape[i].get<int64_t>());
  }
  if (!valid) throw DataError(fmt::format("{}: shape {} is not a shape", where, shown(shape)));

  const json& offsets = fields["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    throw DataError(
        fmt::format("{}: data_offsets {} must be two byte offsets", where, shown(offsets)));
  parsed.begin = offsets[0].get<uint64_t>();
  parsed.end = offsets[1].get<uint64_t>();
  uint64_t bytes = 0;
  if (!tensor_bytes(parsed.entry, &bytes) || parsed.end < parsed.begin ||
      parsed.end - parsed.begin != bytes)
    throw DataError(fmt::format("{}: data_offsets {} do not span a tensor {} of shape {}", where,
                                shown(offsets), type->name, shown(shape)));
  return parsed;
}

void check_metadata(const std::string& path, const json& metadata) {
  const bool valid =
      metadata.is_object() && std::all_of(metadata.begin(), metadata.end(),
                                          [](const json& value) { return value.is_string(); });
  if (!valid) throw DataError(fmt::format("{}: __metadata__ must map strings to strings", path));
}

}  // namespace

// --- reading
// --------------------------------------------------------------------------------------

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string message =
        fmt::format("opening the weights {}: {}", path, std::strerror(errno));
    if (errno == ENOENT) throw NoInputError(message);
    throw IoError(message);
  }
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  size_ = regular ? static_cast<uint64_t>(status.st_size) : 0;
  void* mapping = MAP_FAILED;
  if (size_ >= kLengthBytes) mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_errno = errno;
  ::close(fd);
  if (!regular) throw IoError(fmt::format("opening the weights {}: not a regular file", path));
  if (size_ < kLengthBytes)
    throw DataError(fmt::format("{}: {} bytes are too short for a safetensors file", path, size_));
  if (mapping == MAP_FAILED)
    throw IoError(fmt::format("mapping the weights {}: {}", path, std::strerror(map_errno)));
  mapping_ = static_cast<const char*>(mapping);

  try {
    uint64_t header = 0;
    std::memcpy(&header, mapping_, kLengthBytes);
    if (header > kMaxHeader || header > size_ - kLengthBytes)
      throw DataError(fmt::format("{}: header length {} in a file of {} bytes; the limit is {}",
                                  path, header, size_, kMaxHeader));
    data_ = mapping_ + kLengthBytes + header;
    parse_header(std::string(mapping_ + kLengthBytes, header), size_ - kLengthBytes - header);
  } catch (...) {
    ::munmap(const_cast<char*>(mapping_), size_);
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() { ::munmap(const_cast<char*>(mapping_), size_); }

void SafetensorsFile::parse_header(const std::string& text, uint64_t data_size) {
  const json header = parse_strictly(text, path_ + ": header", kMaxDepth);
  if (!header.is_object()) throw DataError(path_ + ": the header must be a JSON object");
  std::vector<ParsedEntry> parsed;
  for (const auto& [name, fields] : header.items()) {
    if (name == kMetadata)
      check_metadata(path_, fields);
    else
      parsed.push_back(parse_entry(path_ + ": tensor " + shown(name), name, fields));
  }
  // The tensors tile the data: no overlap, no hole, nothing behind the end.
  std::sort(parsed.begin(), parsed.end(), [](const ParsedEntry& a, const ParsedEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (ParsedEntry& tensor : parsed) {
    const std::string& name = tensor.entry.name;
    if (tensor.begin != expected || tensor.end > data_size)
      throw DataError(
          fmt::format("{}: tensor {} lies at bytes {} to {} where {} was expected, of "
                      "{}: tensors must tile the data without holes or overlap",
                      path_, shown(name), tensor.begin, tensor.end, expected, data_size));
    expected = tensor.end;
    begin_[name] = tensor.begin;
    entries_.emplace(name, std::move(tensor.entry));
  }
  if (expected != data_size)
    throw DataError(fmt::format("{}: the tensors end at byte {} of {} bytes of data", path_,
                                expected, data_size));
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const auto found = entries_.find(name);
  MANIPLE_INVARIANT(found != entries_.end(), "no tensor {} in {}", name, path_);
  at::Tensor tensor = at::empty(found->second.shape, at::TensorOptions(found->second.dtype));
  if (tensor.nbytes() == 0) return tensor;
  const char* from = data_ + begin_.at(name);
  std::memcpy(tensor.data_ptr(), from, tensor.nbytes());
  // The pages come back from the file when they are read again; until then they are not ours.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = static_cast<size_t>(from - mapping_) / page * page;
  ::madvise(const_cast<char*>(mapping_) + begin, from + tensor.nbytes() - (mapping_ + begin),
            MADV_DONTNEED);
  return tensor;
}

SafetensorsFolder::SafetensorsFolder(const std::string& path) : path_(path) {
  const std::string index_path = path + "/model.safetensors.index.json";
  if (std::filesystem::exists(index_path)) {
    open_sharded(index_path);
    return;
  }
  const bool folder = std::filesystem::is_directory(path);
  files_.push_back(std::make_unique<SafetensorsFile>(folder ? path + "/model.safetensors" : path));
  for (const auto& [name, entry] : files_[0]->entries()) files_of_[name] = files_[0].get();
}

void SafetensorsFolder::open_sharded(const std::string& index_path) {
  const json index = parse_strictly(read_file(index_path, "index of the weights"), index_path, 16);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw DataError(index_path + ": there is no object weight_map (tensor name -> file name)");
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
      throw DataError(fmt::format("{}: tensor {} is in {}: must be the name of a file beside it",
                                  index_path, shown(name), shown(file)));
    const SafetensorsFile*& shard = opened[file.get<std::string>()];
    if (!shard) {
      const std::string shard_path = path_ + "/" + file.get<std::string>();
      if (!std::filesystem::is_regular_file(shard_path))
        throw DataError(fmt::format("{}: the shard {} does not exist", index_path, shard_path));
      shard = files_.emplace_back(std::make_unique<SafetensorsFile>(shard_path)).get();
    }
    if (!shard->entries().count(name))
      throw DataError(
          fmt::format("{}: the shard {} has no tensor {}", index_path, shown(file), shown(name)));
    files_of_[name] = shard;
  }
}

std::vector<std::string> SafetensorsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : files_of_) names.push_back(name);
  return names;
}

const SafetensorsFile& SafetensorsFolder::file_of(const std::string& name) const {
  const auto found = files_of_.find(name);
  if (found == files_of_.end())
    throw DataError(fmt::format("reading the weights {}: there is no tensor {}", path_, name));
  return *found->second;
}

const SafetensorsEntry& SafetensorsFolder::entry(const std::string& name) const {
  return file_of(name).entries().at(name);
}

at::Tensor SafetensorsFolder::read(const std::string& name) const {
  return file_of(name).read(name);
}

// --- writing
// --------------------------------------------------------------------------------------

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries)
    : path_(path), temporary_(fmt::format("{}.tmp.{}", path, ::getpid())) {
  const auto rank = [](const SafetensorsEntry& entry) { return find_dtype(entry.dtype); };
  for (const SafetensorsEntry& entry : entries)
    MANIPLE_INVARIANT(rank(entry) && rank(entry)->writable && entry.name != kMetadata,
                      "cannot write a tensor {} of type {}", entry.name,
                      c10::toString(entry.dtype));
  std::sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
    return std::pair(rank(a), a.name) < std::pair(rank(b), b.name);
  });

  nlohmann::ordered_json header = {{kMetadata, {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    uint64_t bytes = 0;
    MANIPLE_INVARIANT(tensor_bytes(entry, &bytes), "the tensor {} is too large", entry.name);
    const bool fresh = slots_.emplace(entry.name, Slot{entry, offset}).second;
    MANIPLE_INVARIANT(fresh, "the tensor {} is declared twice", entry.name);
    nlohmann::ordered_json fields;
    fields["dtype"] = rank(entry)->name;
    fields["shape"] = entry.shape;
    fields["data_offsets"] = {offset, offset + bytes};
    header[entry.name] = std::move(fields);
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  for (auto& [name, slot] : slots_) slot.offset += kLengthBytes + text.size();

  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("creating");
  const uint64_t length = text.size();
  try {
    write_at(0, reinterpret_cast<const char*>(&length), kLengthBytes);
    write_at(kLengthBytes, text.data(), text.size());
  } catch (...) {  // the destructor does not run for an object that was not made
    ::close(fd_);
    ::unlink(temporary_.c_str());
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void SafetensorsWriter::write(const std::string& name, const at::Tensor& tensor) {
  const auto found = slots_.find(name);
  MANIPLE_INVARIANT(found != slots_.end(), "the tensor {} was not declared", name);
  Slot& slot = found->second;
  MANIPLE_INVARIANT(!slot.written, "the tensor {} is written twice", name);
  MANIPLE_INVARIANT(tensor.scalar_type() == slot.entry.dtype && tensor.sizes() == slot.entry.shape,
                    "the tensor {} is not what was declared", name);
  const at::Tensor contiguous = tensor.detach().to(at::kCPU).contiguous();
  write_at(slot.offset, static_cast<const char*>(contiguous.data_ptr()), contiguous.nbytes());
  slot.written = true;
}

void SafetensorsWriter::finish() {
  for (const auto& [name, slot] : slots_)
    MANIPLE_INVARIANT(slot.written, "the tensor {} was never written", name);
  if (::fsync(fd_) != 0) fail("syncing");
  const int fd = fd_;
  fd_ = -1;
  const bool closed = ::close(fd) == 0;
  if (!closed || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    errno = error;
    fail("replacing");
  }
}

void SafetensorsWriter::write_at(uint64_t offset, const char* bytes, uint64_t size) {
  while (size > 0) {
    const ssize_t done = ::pwrite(fd_, bytes, size, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("writing");
    bytes += done;
    offset += done;
    size -= done;
  }
}

void SafetensorsWriter::fail(const std::string& action) const {
  throw IoError(fmt::format("{} the weights {}: {}", action, path_, std::strerror(errno)));
}

}  // namespace maniple

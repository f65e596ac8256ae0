#include "interop/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
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
};

// In the order in which the reference implementation lays tensors out.
constexpr DtypeName kDtypes[] = {
    {"I64", at::ScalarType::Long},      {"F64", at::ScalarType::Double},
    {"F32", at::ScalarType::Float},     {"I32", at::ScalarType::Int},
    {"BF16", at::ScalarType::BFloat16}, {"F16", at::ScalarType::Half},
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

// The tensors of a header in the order of their bytes, which tile the data: no overlap, no hole,
// nothing behind the end. `data_size` is not known when a header is written (none).
std::vector<ParsedEntry> parse_tensors(const std::string& path, const std::string& text,
                                       std::optional<uint64_t> data_size) {
  const json header = parse_strictly(text, path + ": header", kMaxDepth);
  if (!header.is_object()) throw DataError(path + ": the header must be a JSON object");
  std::vector<ParsedEntry> parsed;
  for (const auto& [name, fields] : header.items()) {
    if (name == kMetadata)
      check_metadata(path, fields);
    else
      parsed.push_back(parse_entry(path + ": tensor " + shown(name), name, fields));
  }
  std::sort(parsed.begin(), parsed.end(), [](const ParsedEntry& a, const ParsedEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (const ParsedEntry& tensor : parsed) {
    if (tensor.begin != expected || (data_size && tensor.end > *data_size))
      throw DataError(
          fmt::format("{}: tensor {} lies at bytes {} to {} where {} was expected, of "
                      "{}: tensors must tile the data without holes or overlap",
                      path, shown(tensor.entry.name), tensor.begin, tensor.end, expected,
                      data_size.value_or(0)));
    expected = tensor.end;
  }
  if (data_size && expected != *data_size)
    throw DataError(fmt::format("{}: the tensors end at byte {} of {} bytes of data", path,
                                expected, *data_size));
  return parsed;
}

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors_header(const std::string& path,
                                                       const std::string& header) {
  std::vector<SafetensorsEntry> entries;
  for (ParsedEntry& tensor : parse_tensors(path, header, {}))
    entries.push_back(std::move(tensor.entry));
  return entries;
}

// --- reading
// --------------------------------------------------------------------------------------

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), file_(path) {
  if (file_.size() < kLengthBytes)
    throw DataError(
        fmt::format("{}: {} bytes are too short for a safetensors file", path, file_.size()));
  uint64_t header = 0;
  std::memcpy(&header, file_.data(), kLengthBytes);
  if (header > kMaxHeader || header > file_.size() - kLengthBytes)
    throw DataError(fmt::format("{}: header length {} in a file of {} bytes; the limit is {}", path,
                                header, file_.size(), kMaxHeader));
  data_ = kLengthBytes + header;
  for (ParsedEntry& tensor : parse_tensors(path, this->header(), file_.size() - data_)) {
    begin_[tensor.entry.name] = tensor.begin;
    entries_.emplace(tensor.entry.name, std::move(tensor.entry));
  }
}

std::string SafetensorsFile::header() const {
  return {file_.data() + kLengthBytes, data_ - kLengthBytes};
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const auto found = entries_.find(name);
  MANIPLE_INVARIANT(found != entries_.end(), "no tensor {} in {}", name, path_);
  at::Tensor tensor = at::empty(found->second.shape, at::TensorOptions(found->second.dtype));
  file_.copy(data_ + begin_.at(name), tensor.nbytes(), tensor.data_ptr());
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

std::map<std::string, std::string> SafetensorsFolder::headers() const {
  std::map<std::string, std::string> headers;
  for (const auto& file : files_)
    headers[std::filesystem::path(file->path()).filename()] = file->header();
  return headers;
}

// --- writing
// --------------------------------------------------------------------------------------

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries)
    : file_(path) {
  const auto rank = [](const SafetensorsEntry& entry) { return find_dtype(entry.dtype); };
  for (const SafetensorsEntry& entry : entries)
    MANIPLE_INVARIANT(rank(entry) && entry.name != kMetadata, "cannot write a tensor {} of type {}",
                      entry.name, c10::toString(entry.dtype));
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
  entries_ = std::move(entries);
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  write_header(text);
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::string& header)
    : file_(path) {
  for (ParsedEntry& tensor : parse_tensors("the header for " + path, header, {})) {
    slots_.emplace(tensor.entry.name, Slot{tensor.entry, tensor.begin});
    entries_.push_back(std::move(tensor.entry));
  }
  write_header(header);
}

void SafetensorsWriter::write_header(const std::string& text) {
  for (auto& [name, slot] : slots_) slot.offset += kLengthBytes + text.size();
  const uint64_t length = text.size();
  file_.write(0, &length, kLengthBytes);
  file_.write(kLengthBytes, text.data(), text.size());
}

void SafetensorsWriter::write(const std::string& name, const at::Tensor& tensor) {
  const auto found = slots_.find(name);
  MANIPLE_INVARIANT(found != slots_.end(), "the tensor {} was not declared", name);
  Slot& slot = found->second;
  MANIPLE_INVARIANT(!slot.written, "the tensor {} is written twice", name);
  MANIPLE_INVARIANT(tensor.scalar_type() == slot.entry.dtype && tensor.sizes() == slot.entry.shape,
                    "the tensor {} is not what was declared", name);
  const at::Tensor contiguous = tensor.detach().to(at::kCPU).contiguous();
  file_.write(slot.offset, contiguous.data_ptr(), contiguous.nbytes());
  slot.written = true;
}

void SafetensorsWriter::finish() {
  for (const auto& [name, slot] : slots_)
    MANIPLE_INVARIANT(slot.written, "the tensor {} was never written", name);
  file_.finish();
}

}  // namespace maniple

#include "checkpoint/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/disk.h"
#include "core/errors.h"

namespace maniple {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "maniple-checkpoint";
// The last line of the text; the hash covers every byte before it.
constexpr char kHashKey[] = "\n\"xxh3\": \"";
constexpr char kTextEnd[] = "\"}\n";
constexpr int64_t kMaxElements = int64_t{1} << 56;

constexpr std::pair<ElementType, const char*> kTypeNames[] = {{ElementType::kF32, "f32"},
                                                              {ElementType::kF64, "f64"},
                                                              {ElementType::kI64, "i64"},
                                                              {ElementType::kBf16, "bf16"}};

std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

// "key": [ one entry a line ]
template <typename Entries, typename ToJson>
std::string array_lines(const char* key, const Entries& entries, ToJson to_json) {
  std::string text = fmt::format(",\n\"{}\": [", key);
  const char* separator = "\n ";
  for (const auto& entry : entries) {
    text += separator + dump(to_json(entry));
    separator = ",\n ";
  }
  return text + "]";
}

void require(bool condition, const std::string& message) {
  if (!condition) throw CheckpointError(message);
}

int64_t integer(const json& value, int64_t low, int64_t high) {
  require(value.is_number_integer(), fmt::format("{} is not an integer", dump(value)));
  if (value.is_number_unsigned())
    require(value.get<uint64_t>() <= static_cast<uint64_t>(high),
            fmt::format("{} is greater than {}", dump(value), high));
  const int64_t number = value.get<int64_t>();
  require(number >= low && number <= high, fmt::format("{} is not in [{}, {}]", number, low, high));
  return number;
}

std::vector<int64_t> integers(const json& value) {
  require(value.is_array(), fmt::format("{} is not a list", dump(value)));
  std::vector<int64_t> numbers;
  for (const json& number : value) numbers.push_back(integer(number, 0, kMaxElements));
  return numbers;
}

void require_possible(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  bool possible = true;
  for (const int64_t size : shape)  // a zero does not excuse the others
    possible &=
        !__builtin_mul_overflow(count, std::max<int64_t>(size, 1), &count) && count <= kMaxElements;
  require(possible, fmt::format("shape [{}] is too large", fmt::join(shape, ", ")));
}

ElementType parse_type(const std::string& text) {
  for (const auto& [type, name] : kTypeNames)
    if (text == name) return type;
  throw CheckpointError(fmt::format("'{}' is not an element type", text));
}

TensorEntry parse_tensor(const json& entry) {
  TensorEntry tensor{entry.at("name").get<std::string>(),
                     parse_type(entry.at("type").get<std::string>()), integers(entry.at("shape"))};
  require_possible(tensor.global_shape);
  return tensor;
}

PartEntry parse_file(const json& entry) {
  PartEntry file{entry.at("name").get<std::string>(), integer(entry.at("bytes"), 0, INT64_MAX),
                 entry.at("xxh3").get<std::string>()};
  require(!file.name.empty() && file.name.find('/') == std::string::npos,
          fmt::format("'{}' is not the name of a part", file.name));
  return file;
}

Piece parse_piece(const json& entry, const Manifest& manifest) {
  Piece piece;
  piece.tensor = integer(entry.at("tensor"), 0, static_cast<int64_t>(manifest.tensors.size()) - 1);
  piece.file = integer(entry.at("file"), 0, static_cast<int64_t>(manifest.files.size()) - 1);
  piece.dataset = entry.at("dataset").get<std::string>();
  piece.offset = integers(entry.at("offset"));
  piece.shape = integers(entry.at("shape"));
  const TensorEntry& tensor = manifest.tensors[piece.tensor];
  require(piece.offset.size() == tensor.global_shape.size() &&
              piece.shape.size() == tensor.global_shape.size(),
          fmt::format("a piece of '{}' has not the tensor's number of dims", tensor.name));
  require_possible(piece.shape);
  piece.end = integer(entry.at("end"), 0, num_elements(piece.shape));
  piece.begin = integer(entry.at("begin"), 0, piece.end);
  return piece;
}

Manifest parse_body(const json& body) {
  require(body.at("format") == kFormat, "it is not a Maniple checkpoint");
  const int64_t version = integer(body.at("version"), 0, INT64_MAX);
  require(
      version == kCheckpointVersion,
      fmt::format("its format version is {}, this program reads {}; use the program that wrote it",
                  version, kCheckpointVersion));
  Manifest manifest;
  manifest.step = integer(body.at("step"), 0, INT64_MAX);
  manifest.num_writers = integer(body.at("num_writers"), 1, INT32_MAX);
  manifest.attempt = body.at("attempt").get<std::string>();
  std::set<std::string> names;
  for (const json& entry : body.at("tensors")) {
    manifest.tensors.push_back(parse_tensor(entry));
    require(names.insert(manifest.tensors.back().name).second,
            fmt::format("tensor '{}' is listed twice", manifest.tensors.back().name));
  }
  for (const json& entry : body.at("files")) manifest.files.push_back(parse_file(entry));
  for (const json& entry : body.at("pieces"))
    manifest.pieces.push_back(parse_piece(entry, manifest));
  manifest.meta = body.at("meta");
  return manifest;
}

// The text less its last line, once its hash is found right.
void check_hash(const std::string& text) {
  const size_t hash_line = text.rfind(kHashKey);
  require(hash_line != std::string::npos, "it has no hash line: truncated or not a manifest");
  const std::string hash = disk::hash_text(std::string_view(text).substr(0, hash_line));
  require(text.substr(hash_line) == kHashKey + hash + kTextEnd,
          fmt::format("its hash line is not {}: the contents were changed", hash));
}

}  // namespace

int64_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::kF32:
      return 4;
    case ElementType::kF64:
      return 8;
    case ElementType::kI64:
      return 8;
    case ElementType::kBf16:
      return 2;
  }
  throw InternalError(fmt::format("element type {} does not exist", static_cast<int>(type)));
}

const char* element_type_name(ElementType type) {
  for (const auto& [value, name] : kTypeNames)
    if (value == type) return name;
  throw InternalError(fmt::format("element type {} does not exist", static_cast<int>(type)));
}

std::string describe(ElementType type, const std::vector<int64_t>& global_shape) {
  return fmt::format("{} [{}]", element_type_name(type), fmt::join(global_shape, ", "));
}

TensorSlice Manifest::slice(const Piece& piece) const {
  const TensorEntry& entry = tensors[piece.tensor];
  return {entry.name,  entry.type,  entry.global_shape, piece.offset,
          piece.shape, piece.begin, piece.end,          nullptr};
}

std::string manifest_text(const Manifest& manifest) {
  std::string text = fmt::format(
      "{{\"format\": \"{}\",\n\"version\": {},\n\"step\": {},\n\"num_writers\": {},\n"
      "\"attempt\": {},\n\"meta\": {}",
      kFormat, kCheckpointVersion, manifest.step, manifest.num_writers, dump(manifest.attempt),
      dump(manifest.meta));
  text += array_lines("files", manifest.files, [](const PartEntry& file) {
    return json{{"name", file.name}, {"bytes", file.bytes}, {"xxh3", file.xxh3}};
  });
  text += array_lines("tensors", manifest.tensors, [](const TensorEntry& tensor) {
    return json{{"name", tensor.name},
                {"type", element_type_name(tensor.type)},
                {"shape", tensor.global_shape}};
  });
  text += array_lines("pieces", manifest.pieces, [](const Piece& piece) {
    return json{{"tensor", piece.tensor}, {"file", piece.file},   {"dataset", piece.dataset},
                {"offset", piece.offset}, {"shape", piece.shape}, {"begin", piece.begin},
                {"end", piece.end}};
  });
  text += ",";
  return text + kHashKey + disk::hash_text(text) + kTextEnd;
}

Manifest parse_manifest(const std::string& text, const std::string& source) {
  try {
    check_hash(text);
    return parse_body(json::parse(text));
  } catch (const json::exception& error) {
    throw CheckpointError(fmt::format("{} refused: {}", source, error.what()));
  } catch (const CheckpointError& error) {
    throw CheckpointError(fmt::format("{} refused: {}", source, error.what()));
  }
}

Manifest read_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  std::string text;
  if (!disk::read_text(path, text))
    throw CheckpointError(fmt::format(
        "{} refused: it has no manifest.json; the checkpoint was never completed", folder));
  return parse_manifest(text, path);
}

void merge_part(Manifest& manifest, const Manifest& part) {
  std::map<std::string, int64_t> indices;
  for (size_t i = 0; i < manifest.tensors.size(); ++i)
    indices[manifest.tensors[i].name] = static_cast<int64_t>(i);
  std::vector<int64_t> tensor_index;
  for (const TensorEntry& tensor : part.tensors) {
    const auto [at, added] =
        indices.emplace(tensor.name, static_cast<int64_t>(manifest.tensors.size()));
    tensor_index.push_back(at->second);
    if (added) {
      manifest.tensors.push_back(tensor);
      continue;
    }
    const TensorEntry& known = manifest.tensors[at->second];
    MANIPLE_INVARIANT(known.type == tensor.type && known.global_shape == tensor.global_shape,
                      "tensor '{}' is {} for one writer of the checkpoint and {} for another",
                      tensor.name, describe(known.type, known.global_shape),
                      describe(tensor.type, tensor.global_shape));
  }
  const auto first_file = static_cast<int64_t>(manifest.files.size());
  manifest.files.insert(manifest.files.end(), part.files.begin(), part.files.end());
  for (Piece piece : part.pieces) {
    piece.tensor = tensor_index[piece.tensor];
    piece.file += first_file;
    manifest.pieces.push_back(std::move(piece));
  }
}

std::vector<std::vector<size_t>> pieces_by_tensor(const Manifest& manifest) {
  std::vector<std::vector<size_t>> pieces(manifest.tensors.size());
  for (size_t i = 0; i < manifest.pieces.size(); ++i)
    pieces[manifest.pieces[i].tensor].push_back(i);
  return pieces;
}

std::vector<StoredSegment> stored_tensor(const Manifest& manifest, size_t tensor,
                                         const std::vector<size_t>& pieces,
                                         const std::string& source) {
  const TensorEntry& entry = manifest.tensors[tensor];
  std::vector<StoredSegment> stored;
  for (const size_t piece : pieces)
    for (const Segment& segment : stored_segments(manifest.slice(manifest.pieces[piece])))
      stored.push_back({segment.global, segment.local, segment.count, piece});
  std::sort(stored.begin(), stored.end(),
            [](const auto& a, const auto& b) { return a.global < b.global; });

  const auto refuse = [&](const char* what, int64_t first, int64_t last) {
    throw CheckpointError(fmt::format("{} refused: elements {} to {} of tensor '{}' ({}) {}",
                                      source, first, last - 1, entry.name,
                                      describe(entry.type, entry.global_shape), what));
  };
  int64_t covered = 0;
  for (const StoredSegment& segment : stored) {
    if (segment.global > covered) refuse("are not stored", covered, segment.global);
    if (segment.global < covered)
      refuse("are stored twice", segment.global, std::min(covered, segment.global + segment.count));
    covered += segment.count;
  }
  const int64_t total = num_elements(entry.global_shape);
  if (covered < total) refuse("are not stored", covered, total);
  return stored;
}

}  // namespace maniple

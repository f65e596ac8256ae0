#include "interop/gguf_file.h"

#include <bit>
#include <cstring>
#include <limits>
#include <set>

#include "core/errors.h"
#include "interop/gguf_blocks.h"

namespace maniple {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr char kMagic[] = {'G', 'G', 'U', 'F'};
constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;
constexpr const char* kAlignmentKey = "general.alignment";
constexpr int kMaxDims = 4;

// Types of metadata values, with the format's numbers.
enum class Kind : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

uint64_t round_up(uint64_t x, uint64_t step) { return (x + step - 1) / step * step; }

// --- writing

class Bytes {
 public:
  template <typename T>
  void put(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_text(const std::string& value) {
    put<uint64_t>(value.size());
    text += value;
  }
  void put_kind(Kind kind) { put(static_cast<uint32_t>(kind)); }
  template <typename T>
  void put_list(Kind kind, const std::vector<T>& list) {
    put_kind(Kind::kArray);
    put_kind(kind);
    put<uint64_t>(list.size());
    for (const T& item : list)
      if constexpr (std::is_same_v<T, std::string>)
        put_text(item);
      else
        put(item);
  }

  std::string text;
};

struct PutValue {
  Bytes& out;
  void operator()(uint32_t x) { out.put_kind(Kind::kU32), out.put(x); }
  void operator()(int64_t x) { out.put_kind(Kind::kI64), out.put(x); }
  void operator()(float x) { out.put_kind(Kind::kF32), out.put(x); }
  void operator()(double x) { out.put_kind(Kind::kF64), out.put(x); }
  void operator()(bool x) { out.put_kind(Kind::kBool), out.put<uint8_t>(x); }
  void operator()(const std::string& x) { out.put_kind(Kind::kString), out.put_text(x); }
  void operator()(const std::vector<std::string>& x) { out.put_list(Kind::kString, x); }
  void operator()(const std::vector<int32_t>& x) { out.put_list(Kind::kI32, x); }
  void operator()(const std::vector<float>& x) { out.put_list(Kind::kF32, x); }
};

// --- reading

class Parser {
 public:
  Parser(const std::string& path, const char* data, uint64_t size)
      : path_(path), data_(data), size_(size) {}

  [[noreturn]] void fail(const std::string& why) const {
    throw DataError(fmt::format("reading the GGUF file {}: {}", path_, why));
  }
  template <typename T>
  T take(const char* what) {
    if (size_ - at_ < sizeof(T)) fail(fmt::format("it ends in the middle of {}", what));
    T value;
    std::memcpy(&value, data_ + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string take_text(const char* what) {
    const auto length = take<uint64_t>(what);
    if (length > size_ - at_) fail(fmt::format("{} is longer than the file", what));
    std::string text(data_ + at_, length);
    at_ += length;
    return text;
  }
  // A count of things that take at least `bytes` bytes each.
  uint64_t take_count(const char* what, uint64_t bytes) {
    const auto count = take<uint64_t>(what);
    if (count > (size_ - at_) / bytes) fail(fmt::format("{} {} do not fit the file", count, what));
    return count;
  }
  GgufValue take_value(const std::string& key) {
    const auto kind = take<uint32_t>("a value's type");
    switch (static_cast<Kind>(kind)) {
      case Kind::kU8:
        return static_cast<uint32_t>(take<uint8_t>("a value"));
      case Kind::kU16:
        return static_cast<uint32_t>(take<uint16_t>("a value"));
      case Kind::kU32:
        return take<uint32_t>("a value");
      case Kind::kI8:
        return static_cast<int64_t>(take<int8_t>("a value"));
      case Kind::kI16:
        return static_cast<int64_t>(take<int16_t>("a value"));
      case Kind::kI32:
        return static_cast<int64_t>(take<int32_t>("a value"));
      case Kind::kI64:
        return take<int64_t>("a value");
      case Kind::kU64: {
        const auto x = take<uint64_t>("a value");
        if (x > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
          fail(fmt::format("{} = {} is too large", key, x));
        return static_cast<int64_t>(x);
      }
      case Kind::kF32:
        return take<float>("a value");
      case Kind::kF64:
        return take<double>("a value");
      case Kind::kBool:
        return take<uint8_t>("a value") != 0;
      case Kind::kString:
        return take_text("a text");
      case Kind::kArray:
        return take_list(key);
    }
    fail(fmt::format("{} is of the unknown type {}", key, kind));
  }
  uint64_t at() const { return at_; }

 private:
  template <typename T, typename As>
  std::vector<As> take_numbers() {
    std::vector<As> list(take_count("list entries", sizeof(T)));
    for (As& x : list) x = static_cast<As>(take<T>("a list"));
    return list;
  }
  GgufValue take_list(const std::string& key) {
    const auto kind = take<uint32_t>("a list's type");
    switch (static_cast<Kind>(kind)) {
      case Kind::kBool:
      case Kind::kU8:
        return take_numbers<uint8_t, int32_t>();
      case Kind::kI8:
        return take_numbers<int8_t, int32_t>();
      case Kind::kU16:
        return take_numbers<uint16_t, int32_t>();
      case Kind::kI16:
        return take_numbers<int16_t, int32_t>();
      case Kind::kU32:
        return take_numbers<uint32_t, int32_t>();
      case Kind::kI32:
        return take_numbers<int32_t, int32_t>();
      case Kind::kF32:
        return take_numbers<float, float>();
      case Kind::kString: {
        std::vector<std::string> list(take_count("texts", sizeof(uint64_t)));
        for (std::string& text : list) text = take_text("a text");
        return list;
      }
      default:
        fail(fmt::format("{} is a list of type {}, which is not supported", key, kind));
    }
  }

  const std::string& path_;
  const char* data_;
  uint64_t size_, at_ = 0;
};

bool known(uint32_t type) {
  for (const GgufType t :
       {GgufType::kF32, GgufType::kF16, GgufType::kQ4_0, GgufType::kQ8_0, GgufType::kBF16})
    if (type == static_cast<uint32_t>(t)) return true;
  return false;
}

GgufTensor take_tensor(Parser& in) {
  GgufTensor tensor;
  tensor.name = in.take_text("a tensor's name");
  const auto dims = in.take<uint32_t>("a tensor's dims");
  if (dims == 0 || dims > kMaxDims)
    in.fail(fmt::format("tensor {} has {} dims", tensor.name, dims));
  int64_t elements = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    const auto extent = in.take<uint64_t>("a tensor's shape");
    if (extent == 0 || extent > (uint64_t{1} << 40) ||
        __builtin_mul_overflow(elements, static_cast<int64_t>(extent), &elements) ||
        elements > (int64_t{1} << 50))
      in.fail(fmt::format("tensor {} has an extent of {}", tensor.name, extent));
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));
  }
  const auto type = in.take<uint32_t>("a tensor's type");
  if (!known(type))
    in.fail(
        fmt::format("tensor {} is of type {}; F32 (0), F16 (1), Q4_0 (2), Q8_0 (8) and BF16 (30) "
                    "are supported",
                    tensor.name, type));
  tensor.type = static_cast<GgufType>(type);
  if (tensor.shape.back() % gguf_block(tensor.type) != 0)
    in.fail(fmt::format("tensor {} has rows of {}, no multiple of the block of {}", tensor.name,
                        tensor.shape.back(), gguf_block(tensor.type)));
  return tensor;
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return "F32";
    case GgufType::kF16:
      return "F16";
    case GgufType::kQ4_0:
      return "Q4_0";
    case GgufType::kQ8_0:
      return "Q8_0";
    case GgufType::kBF16:
      return "BF16";
  }
  return "?";
}

int64_t gguf_block(GgufType type) {
  return type == GgufType::kQ4_0 || type == GgufType::kQ8_0 ? 32 : 1;
}

int64_t gguf_bytes(GgufType type, int64_t elements) {
  const int64_t blocks = elements / gguf_block(type);
  switch (type) {
    case GgufType::kF32:
      return 4 * blocks;
    case GgufType::kQ4_0:
      return 18 * blocks;
    case GgufType::kQ8_0:
      return 34 * blocks;
    default:
      return 2 * blocks;
  }
}

int64_t GgufTensor::elements() const {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

GgufWriter::GgufWriter(const std::string& path, const GgufMetadata& metadata,
                       std::vector<GgufTensor> tensors)
    : file_(path) {
  Bytes out;
  out.text.append(kMagic, sizeof kMagic);
  out.put(kVersion);
  out.put<uint64_t>(tensors.size());
  out.put<uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    out.put_text(key);
    std::visit(PutValue{out}, value);
  }
  uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    out.put_text(tensor.name);
    out.put(static_cast<uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent)
      out.put(static_cast<uint64_t>(*extent));
    out.put(static_cast<uint32_t>(tensor.type));
    out.put(offset);
    const bool fresh = slots_.emplace(tensor.name, Slot{tensor, offset}).second;
    MANIPLE_INVARIANT(fresh, "the tensor {} is declared twice", tensor.name);
    offset +=
        round_up(static_cast<uint64_t>(gguf_bytes(tensor.type, tensor.elements())), kAlignment);
  }
  out.text.resize(round_up(out.text.size(), kAlignment), '\0');
  for (auto& [name, slot] : slots_) slot.offset += out.text.size();
  file_.write(0, out.text.data(), out.text.size());
  // The last tensor is padded too: some readers want whole multiples.
  if (offset > 0) file_.write(out.text.size() + offset - 1, "", 1);
}

void GgufWriter::write(const std::string& tensor, int64_t first, const std::string& bytes) {
  const auto found = slots_.find(tensor);
  MANIPLE_INVARIANT(found != slots_.end(), "the tensor {} was not declared", tensor);
  Slot& slot = found->second;
  file_.write(slot.offset + static_cast<uint64_t>(gguf_bytes(slot.tensor.type, first)),
              bytes.data(), bytes.size());
  slot.written += static_cast<int64_t>(bytes.size());
}

void GgufWriter::finish() {
  for (const auto& [name, slot] : slots_)
    MANIPLE_INVARIANT(slot.written == gguf_bytes(slot.tensor.type, slot.tensor.elements()),
                      "{} bytes of the tensor {}", slot.written, name);
  file_.finish();
}

GgufFile::GgufFile(const std::string& path) : path_(path), file_(path) {
  Parser in(path_, file_.data(), file_.size());
  if (file_.size() < sizeof kMagic || std::memcmp(file_.data(), kMagic, sizeof kMagic) != 0)
    in.fail("it does not begin with GGUF");
  in.take<uint32_t>("the magic");
  const auto version = in.take<uint32_t>("the version");
  if (version != kVersion) in.fail(fmt::format("version {}; only version 3 is supported", version));
  const auto num_tensors = in.take<uint64_t>("the number of tensors");
  const uint64_t num_values = in.take_count("metadata entries", 13);
  for (uint64_t i = 0; i < num_values; ++i) {
    const std::string key = in.take_text("a key");
    if (!metadata_.emplace(key, in.take_value(key)).second)
      in.fail(fmt::format("the key {} appears twice", key));
  }
  uint64_t alignment = kAlignment;
  if (const auto at = metadata_.find(kAlignmentKey); at != metadata_.end()) {
    const auto* value = std::get_if<uint32_t>(&at->second);
    if (!value || *value == 0 || !std::has_single_bit(*value) || *value > (1u << 20))
      in.fail("general.alignment is no power of two");
    alignment = *value;
  }
  if (num_tensors > file_.size())
    in.fail(fmt::format("{} tensors do not fit the file", num_tensors));
  for (uint64_t i = 0; i < num_tensors; ++i) {
    GgufTensor tensor = take_tensor(in);
    const auto offset = in.take<uint64_t>("a tensor's offset");
    if (offset % alignment != 0)
      in.fail(
          fmt::format("tensor {} lies at {}, no multiple of {}", tensor.name, offset, alignment));
    if (!begin_.emplace(tensor.name, offset).second)
      in.fail(fmt::format("the tensor {} appears twice", tensor.name));
    tensors_.emplace(tensor.name, std::move(tensor));
  }
  const uint64_t data = round_up(in.at(), alignment);
  for (auto& [name, begin] : begin_) {
    const GgufTensor& tensor = tensors_.at(name);
    const auto bytes = static_cast<uint64_t>(gguf_bytes(tensor.type, tensor.elements()));
    if (data > file_.size() || begin > file_.size() - data || bytes > file_.size() - data - begin)
      in.fail(fmt::format("tensor {} reaches beyond its {} bytes", name, file_.size()));
    begin += data;
  }
}

at::Tensor GgufFile::read(const std::string& name, int64_t first, int64_t n) const {
  const auto found = tensors_.find(name);
  MANIPLE_INVARIANT(found != tensors_.end(), "no tensor {} in {}", name, path_);
  const GgufTensor& tensor = found->second;
  MANIPLE_INVARIANT(first >= 0 && n >= 0 && first + n <= tensor.elements() &&
                        first % gguf_block(tensor.type) == 0 && n % gguf_block(tensor.type) == 0,
                    "elements {} + {} of {}", first, n, name);
  std::string bytes(gguf_bytes(tensor.type, n), '\0');
  file_.copy(begin_.at(name) + static_cast<uint64_t>(gguf_bytes(tensor.type, first)), bytes.size(),
             bytes.data());
  return gguf_decode(tensor.type, bytes.data(), n);
}

}  // namespace maniple

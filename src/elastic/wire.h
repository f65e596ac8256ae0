// Bytes of messages and log records: fixed-width little-endian integers, one byte per bool, enum
// and optional flag, a 32-bit count before strings and vectors. A struct takes part by
//   template <class Self, class F> static void fields(Self& s, F&& f) { f(s.a, s.b); }
// and is then written, read and hashed through the same list, so that reader and writer cannot
// differ. Every value has exactly one encoding.
//
// The decoder trusts nothing: it refuses short and long input, counts larger than the rest of the
// input, bools other than 0 and 1, enums beyond their last value (enum_last below). It never
// throws; after a failure everything reads as zero and ok() is false.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

namespace maniple {

static_assert(std::endian::native == std::endian::little, "the encoding is the memory's");

// The largest legal value of an enum on the wire; every encoded enum defines one.
template <class E>
struct EnumLast;

class WireEncoder {
 public:
  template <class... T>
  void operator()(const T&... values) {
    (put(values), ...);
  }
  const std::string& bytes() const { return bytes_; }
  std::string take() { return std::move(bytes_); }

 private:
  template <class T>
  void put(const T& v) {
    if constexpr (std::is_same_v<T, bool>) {
      bytes_.push_back(v ? 1 : 0);
    } else if constexpr (std::is_enum_v<T>) {
      bytes_.push_back(static_cast<char>(v));
    } else if constexpr (std::is_integral_v<T>) {
      bytes_.append(reinterpret_cast<const char*>(&v), sizeof(T));
    } else {
      T::fields(v, *this);
    }
  }
  void put(const std::string& v) {
    put(static_cast<uint32_t>(v.size()));
    bytes_ += v;
  }
  template <class T>
  void put(const std::vector<T>& v) {
    put(static_cast<uint32_t>(v.size()));
    for (const T& x : v) put(x);
  }
  template <class K, class T>
  void put(const std::map<K, T>& v) {
    put(static_cast<uint32_t>(v.size()));
    for (const auto& [key, x] : v) {
      put(key);
      put(x);
    }
  }
  template <class T>
  void put(const std::optional<T>& v) {
    put(v.has_value());
    if (v) put(*v);
  }
  template <class... T>
  void put(const std::variant<T...>& v) {
    put(static_cast<uint8_t>(v.index()));
    std::visit([this](const auto& x) { put(x); }, v);
  }

  std::string bytes_;
};

class WireDecoder {
 public:
  explicit WireDecoder(std::string_view bytes) : rest_(bytes) {}

  template <class... T>
  void operator()(T&... values) {
    (get(values), ...);
  }
  // Nothing was refused so far.
  bool ok() const { return ok_; }
  // Nothing was refused and nothing is left over.
  bool done() const { return ok_ && rest_.empty(); }

 private:
  void refuse() {
    ok_ = false;
    rest_ = {};
  }
  template <class T>
  void get(T& v) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      get(byte);
      if (byte > 1) refuse();
      v = ok_ && byte == 1;
    } else if constexpr (std::is_enum_v<T>) {
      uint8_t byte = 0;
      get(byte);
      if (byte > static_cast<uint8_t>(EnumLast<T>::value)) refuse();
      v = static_cast<T>(ok_ ? byte : 0);
    } else if constexpr (std::is_integral_v<T>) {
      v = 0;
      if (rest_.size() < sizeof(T)) return refuse();
      std::memcpy(&v, rest_.data(), sizeof(T));
      rest_.remove_prefix(sizeof(T));
    } else {
      T::fields(v, *this);
    }
  }
  void get(std::string& v) {
    const size_t n = count();
    v.assign(rest_.substr(0, n));
    rest_.remove_prefix(n);
  }
  template <class T>
  void get(std::vector<T>& v) {
    v.clear();
    for (size_t n = count(); n > 0 && ok_; --n) get(v.emplace_back());
    if (!ok_) v.clear();
  }
  template <class T>
  void get(std::optional<T>& v) {
    bool present = false;
    get(present);
    v.reset();
    if (present) get(v.emplace());
  }
  template <class... T>
  void get(std::variant<T...>& v) {
    uint8_t index = 0;
    get(index);
    if (index >= sizeof...(T)) refuse();
    if (ok_) choose<0>(v, index);
  }
  template <size_t I, class... T>
  void choose(std::variant<T...>& v, size_t index) {
    if constexpr (I < sizeof...(T)) {
      if (index == I)
        get(v.template emplace<I>());
      else
        choose<I + 1>(v, index);
    }
  }
  // An element takes at least one byte, so a count beyond the rest is a lie.
  size_t count() {
    uint32_t n = 0;
    get(n);
    if (n > rest_.size()) refuse();
    return ok_ ? n : 0;
  }

  std::string_view rest_;
  bool ok_ = true;
};

template <class T>
std::string encode(const T& value) {
  WireEncoder encoder;
  encoder(value);
  return encoder.take();
}

// Whether `bytes` are exactly one value.
template <class T>
bool decode(std::string_view bytes, T& value) {
  WireDecoder decoder(bytes);
  decoder(value);
  return decoder.done();
}

// Frames: u32 length of the payload, u64 XXH3 of the payload, payload. The same for connections
// and for the decision log.
constexpr size_t kFrameHeader = 12;
constexpr size_t kLongestFrame = 16 << 20;

std::string make_frame(std::string_view payload);

enum class FrameState : uint8_t {
  kWhole,    // payload is set, `size` bytes belong to the frame
  kPartial,  // more bytes are needed
  kBad,      // too long, or the checksum is wrong: nothing after it can be trusted
};
struct FrameView {
  FrameState state = FrameState::kPartial;
  std::string_view payload;
  size_t size = 0;
};
// Looks at the front of `bytes`. Empty payloads are bad: a file's unwritten zeros are no frame.
FrameView read_frame(std::string_view bytes, size_t longest = kLongestFrame);

}  // namespace maniple

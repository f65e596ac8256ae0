#include "links/wire.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/errors.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");

constexpr char kHelloMagic[8] = {'M', 'N', 'P', 'L', 'H', 'E', 'L', '1'};
constexpr char kAnswerMagic[8] = {'M', 'N', 'P', 'L', 'A', 'N', 'S', '1'};
constexpr uint32_t kFrameMagic = 0x314d524du;

// Fields one after the other, in a buffer whose last 8 bytes are the hash of those before.
class Writer {
 public:
  explicit Writer(std::span<uint8_t> out) : out_(out) {}
  template <typename T>
  Writer& put(const T& value) {
    std::memcpy(out_.data() + at_, &value, sizeof value);
    at_ += sizeof value;
    return *this;
  }
  Writer& put_text(std::string_view text, size_t room) {
    std::memcpy(out_.data() + at_ + 1, text.data(), text.size());
    out_[at_] = static_cast<uint8_t>(text.size());
    at_ += 1 + room;
    return *this;
  }
  void seal() {
    at_ = out_.size() - 8;
    put(message_hash(out_.first(at_)));
  }

 private:
  std::span<uint8_t> out_;
  size_t at_ = 0;
};

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> in) : in_(in) {}
  bool sealed() const {
    uint64_t hash;
    std::memcpy(&hash, in_.data() + in_.size() - 8, 8);
    return hash == message_hash(in_.first(in_.size() - 8));
  }
  template <typename T>
  Reader& get(T& value) {
    std::memcpy(&value, in_.data() + at_, sizeof value);
    at_ += sizeof value;
    return *this;
  }
  bool get_text(std::string& text, size_t room) {
    const size_t size = in_[at_];
    if (size > room) return false;
    text.assign(reinterpret_cast<const char*>(in_.data()) + at_ + 1, size);
    at_ += 1 + room;
    return true;
  }

 private:
  std::span<const uint8_t> in_;
  size_t at_ = 0;
};

}  // namespace

HelloBytes encode(const Hello& hello) {
  MANIPLE_INVARIANT(hello.token.size() <= kMaxTokenBytes && hello.build.size() <= kMaxBuildBytes,
                    "token of {} bytes, build fingerprint of {}", hello.token.size(),
                    hello.build.size());
  HelloBytes bytes = {};
  Writer out(bytes);
  out.put(kHelloMagic).put_text(hello.token, kMaxTokenBytes);
  out.put(hello.incarnation).put(hello.epoch);
  out.put(hello.slice).put(hello.to_slice).put(hello.position);
  out.put_text(hello.build, kMaxBuildBytes).seal();
  return bytes;
}

std::optional<Hello> decode_hello(const HelloBytes& bytes) {
  Reader in(bytes);
  char magic[8];
  in.get(magic);
  if (std::memcmp(magic, kHelloMagic, 8) != 0 || !in.sealed()) return std::nullopt;
  Hello hello;
  if (!in.get_text(hello.token, kMaxTokenBytes)) return std::nullopt;
  in.get(hello.incarnation).get(hello.epoch);
  in.get(hello.slice).get(hello.to_slice).get(hello.position);
  if (!in.get_text(hello.build, kMaxBuildBytes)) return std::nullopt;
  return hello;
}

bool equal_tokens(std::string_view a, std::string_view b) {
  const auto padded = [](std::string_view text) {
    std::array<uint8_t, kMaxTokenBytes> bytes = {};
    std::memcpy(bytes.data(), text.data(), std::min(text.size(), kMaxTokenBytes));
    return bytes;
  };
  const auto x = padded(a), y = padded(b);
  volatile uint8_t difference = a.size() != b.size() || a.empty() || a.size() > kMaxTokenBytes;
  for (size_t i = 0; i < kMaxTokenBytes; ++i)
    difference = static_cast<uint8_t>(difference | (x[i] ^ y[i]));
  return difference == 0;
}

HelloBytes encode_answer(std::string_view refusal) {
  HelloBytes bytes = {};
  Writer out(bytes);
  out.put(kAnswerMagic).put_text(refusal.substr(0, kMaxReasonBytes), kMaxReasonBytes).seal();
  return bytes;
}

std::optional<std::string> decode_answer(const HelloBytes& bytes) {
  Reader in(bytes);
  char magic[8];
  in.get(magic);
  std::string refusal;
  if (std::memcmp(magic, kAnswerMagic, 8) != 0 || !in.sealed() ||
      !in.get_text(refusal, kMaxReasonBytes))
    return std::nullopt;
  return refusal;
}

FrameHeaderBytes encode(const FrameHeader& h) {
  FrameHeaderBytes bytes = {};
  Writer out(bytes);
  out.put(kFrameMagic).put(h.bytes).put(h.incarnation).put(h.epoch).put(h.step);
  out.put(h.attempt).put(h.sequence).put(h.piece).put(h.encoding);
  out.put(h.note).put(h.payload_hash).seal();
  return bytes;
}

std::optional<FrameHeader> decode_frame_header(const FrameHeaderBytes& bytes) {
  Reader in(bytes);
  uint32_t magic = 0;
  FrameHeader h;
  in.get(magic).get(h.bytes).get(h.incarnation).get(h.epoch).get(h.step);
  in.get(h.attempt).get(h.sequence).get(h.piece).get(h.encoding).get(h.note).get(h.payload_hash);
  if (magic != kFrameMagic || h.bytes > kMaxPieceBytes || !in.sealed()) return std::nullopt;
  return h;
}

}  // namespace maniple

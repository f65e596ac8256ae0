#include "launch/control_wire.h"

namespace maniple {
namespace {

constexpr uint8_t kVersion = 1;

// The kinds differ in their first byte too, so none can be taken for another.
enum class Kind : uint8_t { kHello = 0x48, kAnswer = 0x41, kLocal = 0x4c, kPulse = 0x50 };

template <class T>
std::string frame_of(Kind kind, const T& value) {
  WireEncoder encoder;
  encoder(static_cast<uint8_t>(kind), kVersion, value);
  return make_frame(encoder.bytes());
}

template <class T>
std::optional<T> value_of(Kind kind, std::string_view payload) {
  WireDecoder decoder(payload);
  uint8_t seen = 0, version = 0;
  T value;
  decoder(seen, version, value);
  if (!decoder.done() || seen != static_cast<uint8_t>(kind) || version != kVersion)
    return std::nullopt;
  return value;
}

}  // namespace

std::string encode_hello(const ControlHello& hello) { return frame_of(Kind::kHello, hello); }
std::optional<ControlHello> decode_control_hello(std::string_view payload) {
  return value_of<ControlHello>(Kind::kHello, payload);
}
std::string encode_control_answer(const ControlAnswer& answer) {
  return frame_of(Kind::kAnswer, answer);
}
std::optional<ControlAnswer> decode_control_answer(std::string_view payload) {
  return value_of<ControlAnswer>(Kind::kAnswer, payload);
}
std::string encode_pulse() { return frame_of(Kind::kPulse, true); }
bool is_pulse(std::string_view payload) { return value_of<bool>(Kind::kPulse, payload).has_value(); }
std::string encode_local(const LocalMessage& message) { return frame_of(Kind::kLocal, message); }
std::optional<LocalMessage> decode_local(std::string_view payload) {
  return value_of<LocalMessage>(Kind::kLocal, payload);
}

}  // namespace maniple

#include "elastic/messages.h"

namespace maniple {

namespace {
constexpr uint8_t kProtocolVersion = 2;
}

const char* message_name(const Message& message) {
  static constexpr const char* kNames[] = {
      "AgentHello", "Beat",    "Exited",       "Register",       "State",  "Ready",
      "BrokenLink", "Rows",    "Finished",     "CheckpointPart", "SdcFinding", "Launch", "Kill",
      "Stop",       "Epoch",   "Run",          "RowsAck",        "Query",  "Dismiss",
      "Verdict",    "Control", "ControlReply", "Prepare"};
  static_assert(std::size(kNames) == std::variant_size_v<Message>);
  return kNames[message.index()];
}

std::string encode_message(const Envelope& envelope) {
  WireEncoder encoder;
  encoder(kProtocolVersion, envelope);
  return make_frame(encoder.bytes());
}

std::optional<Envelope> decode_message(std::string_view payload) {
  WireDecoder decoder(payload);
  uint8_t version = 0;
  Envelope envelope;
  decoder(version, envelope);
  if (!decoder.done() || version != kProtocolVersion) return std::nullopt;
  return envelope;
}

}  // namespace maniple

// The bytes on a link between equal positions of two slices (docs/formats.md): a hello of fixed
// size each way, then frames: a header of fixed size and a payload. Little-endian. Pure functions;
// what does not parse is refused, never trusted. Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace maniple {

constexpr int64_t kMaxPieceBytes = 1 << 20;  // payload of a frame
constexpr size_t kMaxTokenBytes = 64, kMaxBuildBytes = 64;

// Who speaks, and to whom. The token is a secret of the job: it keeps strangers and other jobs out
// of a trusted network, it does not encrypt.
struct Hello {
  std::string token;         // 1 to 64 bytes
  uint64_t incarnation = 0;  // of the coordinator
  uint64_t epoch = 0;        // of the membership
  int32_t slice = 0, to_slice = 0;
  int32_t position = 0;  // of both ends inside their slices
  std::string build;     // build fingerprint, at most 64 bytes

  bool operator==(const Hello&) const = default;
};

constexpr size_t kHelloBytes = 256;
using HelloBytes = std::array<uint8_t, kHelloBytes>;
HelloBytes encode(const Hello& hello);
std::optional<Hello> decode_hello(const HelloBytes& bytes);

// Compares all 64 bytes whatever they hold, so that the time says nothing about the first
// difference. Empty tokens equal nothing.
bool equal_tokens(std::string_view a, std::string_view b);

// The answer to a hello: empty means accepted (the answering side's own hello follows), else why
// not, at most kMaxReasonBytes (cut).
constexpr size_t kMaxReasonBytes = 236;
HelloBytes encode_answer(std::string_view refusal);
std::optional<std::string> decode_answer(const HelloBytes& bytes);

// One piece of one operation. (step, attempt, sequence) names the operation: pieces of it arrive in
// order, 0, 1, ….
struct FrameHeader {
  uint32_t bytes = 0;  // payload
  uint64_t incarnation = 0, epoch = 0, step = 0;
  uint32_t attempt = 0, sequence = 0, piece = 0;
  uint32_t encoding = 0;              // of the payload; the operation's own
  std::array<uint64_t, 2> note = {};  // the operation's own
  uint64_t payload_hash = 0;

  bool operator==(const FrameHeader&) const = default;
};

// The encoding of the last frame of a member that leaves with all its operations done; no payload.
constexpr uint32_t kGoodbye = 0xffffffffu;

constexpr size_t kFrameHeaderBytes = 80;
using FrameHeaderBytes = std::array<uint8_t, kFrameHeaderBytes>;
FrameHeaderBytes encode(const FrameHeader& header);
// Nothing when the bytes are not a header (they carry their own hash) or announce a payload of more
// than kMaxPieceBytes: the framing is lost and the link must go.
std::optional<FrameHeader> decode_frame_header(const FrameHeaderBytes& bytes);

}  // namespace maniple

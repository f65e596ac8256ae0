#include "elastic/wire.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/errors.h"

namespace maniple {

std::string make_frame(std::string_view payload) {
  MANIPLE_INVARIANT(!payload.empty() && payload.size() <= kLongestFrame, "frame of {} bytes",
                    payload.size());
  WireEncoder head;
  head(static_cast<uint32_t>(payload.size()),
       static_cast<uint64_t>(XXH3_64bits(payload.data(), payload.size())));
  return head.take().append(payload);
}

FrameView read_frame(std::string_view bytes, size_t longest) {
  if (bytes.size() < kFrameHeader) return {};
  uint32_t length = 0;
  uint64_t checksum = 0;
  WireDecoder decoder(bytes.substr(0, kFrameHeader));
  decoder(length, checksum);
  if (length == 0 || length > longest) return {FrameState::kBad, {}, 0};
  if (bytes.size() < kFrameHeader + length) return {};
  const std::string_view payload = bytes.substr(kFrameHeader, length);
  if (XXH3_64bits(payload.data(), payload.size()) != checksum) return {FrameState::kBad, {}, 0};
  return {FrameState::kWhole, payload, kFrameHeader + length};
}

}  // namespace maniple

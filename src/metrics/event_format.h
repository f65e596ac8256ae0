// The event files of TensorBoard (docs/formats.md), as far as scalars go: records framed as
// TFRecords, each a protobuf message Event. Shared by the writer and the reader of the tests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace maniple {

// CRC-32C (Castagnoli) of RFC 3720, and the masked form that TFRecords store.
uint32_t crc32c(std::string_view bytes);
inline uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

inline constexpr char kEventVersion[] = "brain.Event:2";

struct Event {
  double wall_time = 0;  // seconds since 1970
  int64_t step = 0;
  std::string file_version;     // of a file's first event, else empty
  bool session_start = false;   // points at this step and later ones of earlier files are obsolete
  std::vector<std::pair<std::string, float>> scalars;  // tag, value
  bool operator==(const Event&) const = default;
};

// The protobuf message, and that message as a TFRecord.
std::string encode_event(const Event& event);
std::string frame_record(std::string_view message);

// All events of a file. Throws DataError for a broken frame, checksum or message; `source` is the
// name in its message. Unknown fields are skipped.
std::vector<Event> decode_events(std::string_view file, const std::string& source);

}  // namespace maniple

#include "metrics/event_format.h"

#include <fmt/format.h>

#include <array>
#include <bit>

#include "core/errors.h"

namespace maniple {
namespace {

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
enum EventField { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7 };
enum SummaryField { kValue = 1 };
enum ValueField { kTag = 1, kSimpleValue = 2 };
enum SessionField { kStatus = 1 };
constexpr uint64_t kStatusStart = 1;
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    table[i] = crc;
  }
  return table;
}

void put_fixed(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
}
void put_varint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  out += static_cast<char>(value);
}
void put_key(std::string& out, int field, Wire wire) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | wire);
}
void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

// Reads little-endian numbers and protobuf fields; every step past the end is an error.
class Reader {
 public:
  Reader(std::string_view bytes, const std::string& source) : bytes_(bytes), source_(source) {}
  bool done() const { return bytes_.empty(); }

  std::string_view take(uint64_t n) {
    if (n > bytes_.size()) fail(fmt::format("{} bytes wanted, {} left", n, bytes_.size()));
    const std::string_view taken = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return taken;
  }
  uint64_t fixed(int n) {
    uint64_t value = 0;
    const std::string_view taken = take(static_cast<uint64_t>(n));
    for (int i = n - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(taken[i]);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint64_t byte = fixed(1);
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
    fail("a number has more than ten bytes");
  }
  // visit(field, wire, number, bytes): number of kVarint, kFixed32 and kFixed64, else bytes.
  template <typename Visit>
  void fields(const Visit& visit) {
    while (!done()) {
      const uint64_t key = varint();
      const auto wire = static_cast<Wire>(key & 7);
      uint64_t number = 0;
      std::string_view bytes;
      switch (wire) {
        case kVarint: number = varint(); break;
        case kFixed64: number = fixed(8); break;
        case kFixed32: number = fixed(4); break;
        case kBytes: bytes = take(varint()); break;
        default: fail(fmt::format("wire type {} is unknown", static_cast<int>(wire)));
      }
      visit(key >> 3, wire, number, bytes);
    }
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw DataError(fmt::format("cannot read the event file {}: {}", source_, why));
  }

 private:
  std::string_view bytes_;
  const std::string& source_;
};

Event decode_event(std::string_view message, const std::string& source) {
  Event event;
  Reader(message, source).fields([&](uint64_t field, Wire wire, uint64_t number, std::string_view bytes) {
    if (field == kWallTime && wire == kFixed64) event.wall_time = std::bit_cast<double>(number);
    if (field == kStep && wire == kVarint) event.step = static_cast<int64_t>(number);
    if (field == kFileVersion && wire == kBytes) event.file_version = bytes;
    if (field == kSessionLog && wire == kBytes)
      Reader(bytes, source).fields([&](uint64_t f, Wire w, uint64_t n, std::string_view) {
        if (f == kStatus && w == kVarint) event.session_start = n == kStatusStart;
      });
    if (field != kSummary || wire != kBytes) return;
    Reader(bytes, source).fields([&](uint64_t f, Wire w, uint64_t, std::string_view value) {
      if (f != kValue || w != kBytes) return;
      auto& scalar = event.scalars.emplace_back();
      Reader(value, source).fields([&](uint64_t g, Wire v, uint64_t n, std::string_view text) {
        if (g == kTag && v == kBytes) scalar.first = text;
        if (g == kSimpleValue && v == kFixed32)
          scalar.second = std::bit_cast<float>(static_cast<uint32_t>(n));
      });
    });
  });
  return event;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> table = make_crc_table();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 255];
  return ~crc;
}

std::string encode_event(const Event& event) {
  std::string out, summary;
  put_key(out, kWallTime, kFixed64);
  put_fixed(out, std::bit_cast<uint64_t>(event.wall_time), 8);
  if (event.step) {
    put_key(out, kStep, kVarint);
    put_varint(out, static_cast<uint64_t>(event.step));
  }
  if (!event.file_version.empty()) put_bytes(out, kFileVersion, event.file_version);
  if (event.session_start) {
    std::string session;
    put_key(session, kStatus, kVarint);
    put_varint(session, kStatusStart);
    put_bytes(out, kSessionLog, session);
  }
  for (const auto& [tag, number] : event.scalars) {
    std::string value;
    put_bytes(value, kTag, tag);
    put_key(value, kSimpleValue, kFixed32);
    put_fixed(value, std::bit_cast<uint32_t>(number), 4);
    put_bytes(summary, kValue, value);
  }
  if (!summary.empty()) put_bytes(out, kSummary, summary);
  return out;
}

std::string frame_record(std::string_view message) {
  std::string out;
  put_fixed(out, message.size(), 8);
  put_fixed(out, masked_crc32c(out), 4);
  out += message;
  put_fixed(out, masked_crc32c(message), 4);
  return out;
}

std::vector<Event> decode_events(std::string_view file, const std::string& source) {
  std::vector<Event> events;
  for (Reader reader(file, source); !reader.done();) {
    const std::string_view length = reader.take(8);
    if (reader.fixed(4) != masked_crc32c(length)) reader.fail("the checksum of a length is wrong");
    const std::string_view message = reader.take(Reader(length, source).fixed(8));
    if (reader.fixed(4) != masked_crc32c(message)) reader.fail("the checksum of a record is wrong");
    events.push_back(decode_event(message, source));
  }
  return events;
}

}  // namespace maniple

#include "data/teacher_format.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/errors.h"
#include "core/half.h"
#include "core/text.h"

namespace maniple {
namespace {

using Json = nlohmann::ordered_json;
constexpr int64_t kVersion = 1;
constexpr TargetKind kKinds[] = {TargetKind::kTopK, TargetKind::kCounts, TargetKind::kSampled,
                                 TargetKind::kImportance};

class BitWriter {
 public:
  void put(uint64_t value, int bits) {  // bits <= 32
    pending_ |= value << held_;
    held_ += bits;
    if (held_ >= 32) flush(4), held_ -= 32, pending_ >>= 32;
  }
  std::string finish() {
    flush((held_ + 7) / 8);
    return std::move(bytes_);
  }

 private:
  void flush(int bytes) {  // the machine is little-endian (teacher_shard.cpp)
    bytes_.append(reinterpret_cast<const char*>(&pending_), static_cast<size_t>(bytes));
  }

  std::string bytes_;
  uint64_t pending_ = 0;
  int held_ = 0;
};

class BitReader {
 public:
  explicit BitReader(const std::string& bytes) : bytes_(bytes) {}
  bool has(int bits) const { return held_ + 8 * static_cast<int64_t>(bytes_.size() - at_) >= bits; }
  uint64_t get(int bits) {  // has(bits), bits <= 32
    for (; held_ < bits; held_ += 8)
      pending_ |= static_cast<uint64_t>(static_cast<unsigned char>(bytes_[at_++])) << held_;
    const uint64_t value = pending_ & ((uint64_t{1} << bits) - 1);
    pending_ >>= bits;
    held_ -= bits;
    return value;
  }
  bool at_end() const { return at_ == bytes_.size() && pending_ == 0; }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
  uint64_t pending_ = 0;
  int held_ = 0;
};

Json to_json(const TeacherHeader& h) {
  return {{"format", "maniple-teacher-store"},
          {"version", kVersion},
          {"targets", to_string(h.targets.kind)},
          {"num", h.targets.num},
          {"temperature", h.targets.temperature},
          {"power", h.targets.power},
          {"seed", h.targets.seed},
          {"id_bits", 18},
          {"count_bits", h.targets.count_bits()},
          {"value_bits", h.targets.valued() ? 16 : 0},
          {"vocab_size", h.vocab_size},
          {"seq_len", h.seq_len},
          {"tokenizer", h.tokenizer},
          {"alignment", kAlignmentRule},
          {"packing", kPackingRule},
          {"teacher", h.teacher},
          {"teacher_model_type", h.model_type},
          {"teacher_hash", h.teacher_hash}};
}

}  // namespace

const char* const kAlignmentRule =
    "the entries of token t are the distribution of the token after it, given those of its document "
    "up to t in the row";
const char* const kPackingRule =
    "row i of a source has the tokens i * seq_len to (i + 1) * seq_len; positions restart at "
    "documents and rows; attention stays inside a document";

const char* to_string(TargetKind kind) {
  constexpr const char* names[] = {"topk", "counts", "sampled", "importance"};
  return names[static_cast<int>(kind)];
}

std::string header_text(const TeacherHeader& header) { return to_json(header).dump(2) + "\n"; }

TeacherHeader parse_header(const std::string& text, const std::string& source) {
  auto refuse = [&](const std::string& why) {
    return DataError(fmt::format("teacher store: {}: {}; write the store anew with maniple teach",
                                 source, one_line(why)));
  };
  TeacherHeader h;
  Json json;
  try {
    json = Json::parse(text);
    if (json.at("format") != "maniple-teacher-store") throw refuse("is no header of a teacher store");
    if (json.at("version") != kVersion)
      throw refuse(fmt::format("has format version {}, this program reads {}",
                               json.at("version").dump(), kVersion));
    const std::string kind = json.at("targets");
    const auto* found = std::find_if(std::begin(kKinds), std::end(kKinds),
                                     [&](TargetKind k) { return kind == to_string(k); });
    if (found == std::end(kKinds)) throw refuse("targets are '" + kind + "', which is no kind");
    h.targets = {*found, json.at("num"), json.at("temperature"), json.at("power"), json.at("seed")};
    h.vocab_size = json.at("vocab_size");
    h.seq_len = json.at("seq_len");
    h.tokenizer = json.at("tokenizer");
    h.teacher = json.at("teacher");
    h.model_type = json.at("teacher_model_type");
    h.teacher_hash = json.at("teacher_hash");
  } catch (const Json::exception& e) {
    throw refuse(e.what());
  }
  const TargetSpec& t = h.targets;
  if (t.num < 1 || t.num > (t.sampled() ? 256 : kMaxTargetId) || h.vocab_size < 1 || h.seq_len < 1 ||
      h.seq_len > 1 << 28 || !(t.temperature > 0) || !(t.power > 0))
    throw refuse("a number in it is out of range");
  if (json.value("alignment", "") != kAlignmentRule || json.value("packing", "") != kPackingRule)
    throw refuse("its rule of alignment or packing is not the one of this program");
  if (json != to_json(h)) throw refuse("its widths do not fit its targets");
  return h;
}

std::string header_difference(const TeacherHeader& stored, const TeacherHeader& wanted) {
  const Json a = to_json(stored), b = to_json(wanted);
  std::string text;
  for (const auto& [key, value] : a.items())
    if (key != "teacher" && value != b[key])
      text += fmt::format("{}{}: {} in the store, {} here", text.empty() ? "" : ", ", key,
                          value.dump(), b[key].dump());
  return text;
}

std::string pack_entries(const TeacherRow& row, const TargetSpec& spec) {
  BitWriter out;
  for (size_t i = 0; i < row.id.size(); ++i) {
    MANIPLE_INVARIANT(row.id[i] >= 0 && row.id[i] < kMaxTargetId, "id {} in a target", row.id[i]);
    out.put(static_cast<uint64_t>(row.id[i]), 18);
    if (spec.sampled()) out.put(static_cast<uint64_t>(row.count[i] - 1), spec.count_bits());
    if (spec.valued()) out.put(half_bits(row.log_value[i]), 16);
  }
  return out.finish();
}

void unpack_entries(const std::string& bytes, const TeacherHeader& header, const std::string& place,
                    TeacherRow& row) {
  const TargetSpec& spec = header.targets;
  auto refuse = [&](const char* why) {
    return DataError(fmt::format("teacher store: {}: {}; the store is damaged: remove this file and "
                                 "run maniple teach again",
                                 place, why));
  };
  BitReader in(bytes);
  row.begin = {0};
  const int64_t wanted = spec.sampled() ? spec.num : std::min(spec.num, header.vocab_size);
  for (const float mass : row.mass) {
    int64_t have = 0, last = -1;
    while (mass != 0 && have < wanted) {
      if (!in.has(spec.entry_bits())) throw refuse("its entries end too early");
      const auto id = static_cast<int64_t>(in.get(18));
      if (id <= last || id >= header.vocab_size) throw refuse("an id is out of order or range");
      last = id;
      row.id.push_back(static_cast<int32_t>(id));
      const int64_t count = spec.sampled() ? static_cast<int64_t>(in.get(spec.count_bits())) + 1 : 1;
      if (spec.sampled()) row.count.push_back(static_cast<int32_t>(count));
      if (spec.valued()) row.log_value.push_back(half_value(static_cast<uint16_t>(in.get(16))));
      have += count;
    }
    if (have > wanted) throw refuse("a token has more draws than the header says");
    row.begin.push_back(static_cast<int32_t>(row.id.size()));
  }
  if (!in.at_end()) throw refuse("it has more entries than tokens need");
}

}  // namespace maniple

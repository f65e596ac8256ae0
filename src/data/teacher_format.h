// The format of a teacher store (docs/formats.md), shared by its writer and its reader: the header
// and the packed records of a row.
#pragma once

#include <cstdint>
#include <string>

#include "data/teacher_row.h"

namespace maniple {

// How the entries of a token were chosen.
enum class TargetKind {
  kTopK,        // the `num` most likely ids with ln p
  kCounts,      // `num` draws with replacement from p: ids and counts
  kSampled,     // the same with ln p
  kImportance,  // `num` draws from q ~ p^power: ids, counts and ln(p / q)
};
const char* to_string(TargetKind kind);

struct TargetSpec {
  TargetKind kind = TargetKind::kCounts;
  int64_t num = 50;        // entries k, or draws N
  double temperature = 1;  // of the teacher's soft-max
  double power = 1;        // of importance
  uint64_t seed = 1;       // of the draws
  bool operator==(const TargetSpec&) const = default;

  bool sampled() const { return kind != TargetKind::kTopK; }
  bool valued() const { return kind != TargetKind::kCounts; }
  int count_bits() const { return !sampled() ? 0 : num <= 64 ? 6 : 8; }
  int entry_bits() const { return 18 + count_bits() + (valued() ? 16 : 0); }
};
constexpr int64_t kMaxTargetId = int64_t{1} << 18;  // ids are below it

// header.json of a store. What a reader must agree with, beside what it likes to know.
struct TeacherHeader {
  TargetSpec targets;
  int64_t vocab_size = 0, seq_len = 0;
  std::string tokenizer;  // tokenizer_name() of the data
  // The teacher: where it came from, its hub model_type, a hash of its files.
  std::string teacher, model_type, teacher_hash;
};
// Alignment of entries and tokens, and of rows and the source: texts, equal in every store of this
// format.
extern const char* const kAlignmentRule;
extern const char* const kPackingRule;

std::string header_text(const TeacherHeader& header);
// Throws DataError; `source` is the name in its message.
TeacherHeader parse_header(const std::string& text, const std::string& source);
// What differs, "temperature: 1 in the store, 2 here"; empty: the same targets.
std::string header_difference(const TeacherHeader& stored, const TeacherHeader& wanted);

// The entries of a row as bits, least significant first: id (18), count - 1 (6 or 8), half (16).
// Nothing says how many a token has: top-k has min(k, vocabulary), draws end with their N-th.
std::string pack_entries(const TeacherRow& row, const TargetSpec& spec);
// Fills begin, id, count, log_value from the bytes and `row.mass` (0: no entries). Throws DataError
// for what no writer writes; `place` names the row in its message.
void unpack_entries(const std::string& bytes, const TeacherHeader& header, const std::string& place,
                    TeacherRow& row);

}  // namespace maniple

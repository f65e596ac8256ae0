// The header of a teacher store, and behind a zero byte the entries of a row of 16 tokens.
#include "data/teacher_format.h"
#include "fuzz.h"

namespace maniple {

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds;
  for (const TargetSpec& spec :
       {TargetSpec{TargetKind::kCounts, 5}, TargetSpec{TargetKind::kTopK, 3, 2, 1, 0},
        TargetSpec{TargetKind::kImportance, 100, 1, 0.5}}) {
    TeacherRow row;
    for (int32_t t = 0; t < 16; ++t)
      for (int32_t i = 0; i < (spec.sampled() ? 2 : 3); ++i) {
        row.id.push_back(t + 3 * i);
        row.count.push_back(static_cast<int32_t>(i ? spec.num - 2 : 2));
        row.log_value.push_back(-0.5f * static_cast<float>(t));
      }
    const TeacherHeader header{spec, 300, 16, "bytes", "runs/teacher", "house", "0123456789abcdef"};
    seeds.push_back(header_text(header) + '\0' + pack_entries(row, spec));
  }
  return seeds;
}

std::vector<std::string> fuzz_dictionary() {
  return {"\"counts\"", "\"topk\"", "\"sampled\"", "\"num\": 256", "\"num\": 262144", "\"version\": 2",
          "\"vocab_size\": 1", "null", "{}", "[]", "\"temperature\": 0", "\"seed\": -1"};
}

void fuzz_one(const std::string& input) {
  const size_t end = input.find('\0');
  const TeacherHeader header = parse_header(input.substr(0, end), "fuzz");
  if (end == input.npos) return;
  TeacherRow row;
  row.mass.assign(16, 1);
  unpack_entries(input.substr(end + 1), header, "fuzz", row);
}

}  // namespace maniple

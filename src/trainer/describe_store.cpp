#include <algorithm>
#include <cmath>
#include <filesystem>

#include "data/teacher_store.h"
#include "metrics/console.h"
#include "trainer/teach.h"

namespace maniple {
namespace {

constexpr int64_t kMostRead = 4096;  // rows that the statistics read

double at_share(std::vector<float>& values, double share) {
  if (values.empty()) return 0;
  const auto nth = values.begin() + static_cast<int64_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), nth, values.end());
  return static_cast<double>(*nth);
}

}  // namespace

bool is_teacher_store(const std::string& path) {
  return std::filesystem::exists(std::filesystem::path(path) / "header.json");
}

void describe_teacher_store(const std::string& path, bool verify) {
  const TeacherStore store(path);
  const TeacherHeader& h = store.header();
  int64_t bytes = 0;
  for (const TeacherShard& shard : store.shards()) bytes += shard.file_bytes();

  // Statistics over evenly spread rows (all, when every hash is checked).
  const int64_t step = verify ? 1 : std::max<int64_t>(1, store.num_rows() / kMostRead);
  std::vector<float> masses;
  double entries = 0, mass_sum = 0, label_sum = 0;
  int64_t number = 0, masked = 0;
  for (const TeacherShard& shard : store.shards())
    for (size_t i = 0; i < shard.rows().size(); ++i) {
      if (number++ % step) continue;
      const TeacherRow row = shard.read(i);
      entries += static_cast<double>(row.id.size());
      for (size_t t = 0; t < row.mass.size(); ++t) {
        if (row.mass[t] == 0) {
          ++masked;
          continue;
        }
        masses.push_back(row.mass[t]);
        mass_sum += static_cast<double>(row.mass[t]);
        label_sum -= static_cast<double>(row.label_logp[t]);
      }
    }
  const auto n = static_cast<double>(std::max<size_t>(1, masses.size()));
  const double tokens = static_cast<double>(store.num_rows() * h.seq_len);
  const TargetSpec& t = h.targets;
  std::vector<std::pair<std::string, std::string>> kept = {
      {"ids per target", fmt::format("{:.2f}", entries / n)},
      {"covered mass", fmt::format("mean {:.4f}, 1 % below {:.4f}, 10 % below {:.4f}, half below {:.4f}",
                                   mass_sum / n, at_share(masses, 0.01), at_share(masses, 0.1),
                                   at_share(masses, 0.5))},
      {"teacher's loss", fmt::format("{:.4f}", label_sum / n)},
      {"masked tokens", fmt::format("{}", masked)}};
  if (verify) kept.emplace_back("hashes", "all good");
  std::fputs(
      format_table(
          {{"teacher store",
            {{"targets", fmt::format("{}, {} {}{}", to_string(t.kind), t.num,
                                     t.sampled() ? "draws" : "ids",
                                     t.kind == TargetKind::kImportance
                                         ? fmt::format(" from p^{}", t.power)
                                         : "")},
             {"temperature", fmt::format("{}", t.temperature)},
             {"teacher", fmt::format("{} ({}, {})", h.teacher, h.model_type, h.teacher_hash)},
             {"vocabulary, tokenizer", fmt::format("{}, {}", h.vocab_size, h.tokenizer)},
             {"rows", fmt::format("{} of {} tokens in {} files", store.num_rows(), h.seq_len,
                                  store.shards().size())},
             {"bytes", fmt::format("{} ({:.2f} per token)", bytes,
                                   static_cast<double>(bytes) / std::max(1.0, tokens))}}},
           {"of the teacher it keeps", kept}},
          detect_console_style(stdout))
          .c_str(),
      stdout);
}

}  // namespace maniple

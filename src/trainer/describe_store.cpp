#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/errors.h"
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

// Tokens of two rows whose entries differ, and those of which only the numbers beside them do.
struct Differences {
  int64_t tokens = 0, entries = 0, numbers = 0;
  float label_logp = 0;  // the largest

  void add(const TeacherRow& a, const TeacherRow& b) {
    const auto same = [&](const auto& x, const auto& y, size_t t) {
      return x.empty() || std::equal(x.begin() + a.begin[t], x.begin() + a.begin[t + 1],
                                     y.begin() + b.begin[t], y.begin() + b.begin[t + 1]);
    };
    for (size_t t = 0; t < a.mass.size(); ++t) {
      ++tokens;
      const bool drawn = same(a.id, b.id, t) && same(a.count, b.count, t);
      entries += !drawn;
      numbers += drawn && !(same(a.log_value, b.log_value, t) && a.mass[t] == b.mass[t] &&
                            a.label_logp[t] == b.label_logp[t]);
      label_logp = std::max(label_logp, std::abs(a.label_logp[t] - b.label_logp[t]));
    }
  }
};

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

void compare_teacher_stores(const std::string& path, const std::string& against) {
  const TeacherStore a(path), b(against);
  const std::string differs = header_difference(a.header(), b.header());
  if (!differs.empty())
    throw DataError(fmt::format(
        "cannot compare the teacher stores {} and {}: {}; only stores of one teacher with one choice "
        "of targets hold the same tokens' targets", path, against, differs));
  Differences found;
  int64_t both = 0;
  for (const TeacherShard& shard : a.shards())
    for (size_t i = 0; i < shard.rows().size(); ++i) {
      const SampleId sample{shard.source(), shard.rows()[i]};
      if (!b.has(sample)) continue;
      ++both;
      found.add(shard.read(i), b.read(sample));
    }
  const auto share = [&](int64_t n) {
    return fmt::format("{} of {} ({:.4f} %)", n, found.tokens,
                       100 * static_cast<double>(n) / std::max<double>(1, static_cast<double>(found.tokens)));
  };
  std::fputs(format_table({{"two teacher stores",
                            {{"rows in both", fmt::format("{}; {} more in {}, {} more in {}", both,
                                                          a.num_rows() - both, path,
                                                          b.num_rows() - both, against)},
                             {"tokens with other entries", share(found.entries)},
                             {"with the same, other numbers", share(found.numbers)},
                             {"teacher's ln p", fmt::format("differs by at most {:.2g}", found.label_logp)}}}},
                          detect_console_style(stdout))
                 .c_str(),
             stdout);
}

}  // namespace maniple

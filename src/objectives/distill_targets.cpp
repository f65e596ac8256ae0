#include "objectives/distill_targets.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/errors.h"

namespace maniple {
namespace {

struct Weighted {
  int32_t id;
  double weight;
};

// One token's target; `rest` stays 0 but for the ghost class.
struct WeightedTarget {
  std::vector<Weighted> entries;
  double total = 0, rest = 0;
};

double sum_of(const std::vector<Weighted>& entries) {
  double sum = 0;
  for (const Weighted& e : entries) sum += e.weight;
  return sum;
}

void divide_by_sum(std::vector<Weighted>& entries) {
  const double sum = sum_of(entries);
  for (Weighted& e : entries) e.weight /= sum;
}

// Keeps the k largest, the smaller id of equal ones, in order of id.
void keep_largest(std::vector<Weighted>& entries, int64_t k) {
  if (static_cast<int64_t>(entries.size()) <= k) return;
  std::sort(entries.begin(), entries.end(), [](const Weighted& a, const Weighted& b) {
    return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
  });
  entries.resize(static_cast<size_t>(k));
  std::sort(entries.begin(), entries.end(), [](const Weighted& a, const Weighted& b) { return a.id < b.id; });
}

void add_to_label(std::vector<Weighted>& entries, int32_t label, double weight) {
  for (Weighted& e : entries)
    if (e.id == label) {
      e.weight += weight;
      return;
    }
  if (weight > 0) entries.push_back({label, weight});
}

WeightedTarget token_target(const TeacherRow& row, size_t t, int32_t label, DistillVariant variant,
                         const DistillConfig& config) {
  WeightedTarget out;
  for (auto i = static_cast<size_t>(row.begin[t]); i < static_cast<size_t>(row.begin[t + 1]); ++i) {
    double w = 1;
    if (variant == DistillVariant::kSampleCounts || variant == DistillVariant::kImportance)
      w = static_cast<double>(row.count[i]) / static_cast<double>(config.draws);
    if (variant != DistillVariant::kSampleCounts) w *= std::exp(static_cast<double>(row.log_value[i]));
    out.entries.push_back({row.id[i], w});
  }
  out.total = 1;
  const bool top = variant >= DistillVariant::kTopkRenorm;
  if (top) keep_largest(out.entries, config.top_k);
  const double rest = top ? std::max(0.0, 1 - sum_of(out.entries)) : 0;
  switch (variant) {
    case DistillVariant::kSampleCounts:
      break;
    case DistillVariant::kImportance:
      if (config.importance_normalize)
        divide_by_sum(out.entries);
      else
        out.total = sum_of(out.entries);
      break;
    case DistillVariant::kSampleRenorm:
    case DistillVariant::kTopkRenorm:
      divide_by_sum(out.entries);
      break;
    case DistillVariant::kTopkRaw:
      out.total = sum_of(out.entries);
      break;
    case DistillVariant::kTopkGhost:
      out.rest = rest;
      out.total = sum_of(out.entries);
      break;
    case DistillVariant::kTopkToLabel:
      add_to_label(out.entries, label, rest);
      break;
    case DistillVariant::kFull:
      MANIPLE_INVARIANT(false, "full targets are not sparse");
  }
  return out;
}

double minus_x_ln_x(double x) { return x > 0 ? -x * std::log(x) : 0; }

}  // namespace

DistillVariant parse_variant(const std::string& name) {
  constexpr const char* names[] = {"sample_counts", "sample_renorm", "importance",   "topk_renorm",
                                   "topk_raw",      "topk_ghost",    "topk_to_label", "full"};
  for (size_t i = 0; i < std::size(names); ++i)
    if (name == names[i]) return static_cast<DistillVariant>(i);
  throw ConfigError("distill.variant: '" + name + "' is not a variant; see docs/config.md");
}

TargetSpec target_spec(const DistillConfig& config) {
  TargetSpec spec{.temperature = config.temperature, .seed = config.seed};
  switch (parse_variant(config.variant)) {
    case DistillVariant::kSampleCounts:
      spec.kind = TargetKind::kCounts;
      break;
    case DistillVariant::kSampleRenorm:
      spec.kind = TargetKind::kSampled;
      break;
    case DistillVariant::kImportance:
      spec.kind = TargetKind::kImportance;
      spec.power = config.importance_power;
      break;
    default:
      spec.kind = TargetKind::kTopK;
      spec.seed = 0;
  }
  spec.num = spec.sampled() ? config.draws : config.top_k;
  return spec;
}

std::string target_difference(const TargetSpec& stored, const DistillConfig& config) {
  const TargetSpec wanted = target_spec(config);
  if (stored.kind != wanted.kind)
    return fmt::format("it holds targets of kind {}, distill.variant={} needs {}",
                       to_string(stored.kind), config.variant, to_string(wanted.kind));
  if (stored.temperature != wanted.temperature)
    return fmt::format("its temperature is {}, distill.temperature={}", stored.temperature,
                       wanted.temperature);
  if (stored.sampled() ? stored.num != wanted.num : stored.num < wanted.num)
    return fmt::format("it has {} {} per token, {}={}", stored.num,
                       stored.sampled() ? "draws" : "ids",
                       stored.sampled() ? "distill.draws" : "distill.top_k", wanted.num);
  if (stored.power != wanted.power)
    return fmt::format("it was drawn with importance_power {}, distill.importance_power={}",
                       stored.power, wanted.power);
  return "";
}

SparseTargets sparse_targets(const std::vector<Row>& rows, const DistillConfig& config) {
  const DistillVariant variant = parse_variant(config.variant);
  std::vector<WeightedTarget> tokens;
  size_t K = 1;
  for (const Row& row : rows) {
    MANIPLE_INVARIANT(row.teacher.begin.size() == row.target.size() + 1,
                      "a row of {} tokens with a teacher's row of {}", row.target.size(),
                      row.teacher.begin.size());
    for (size_t t = 0; t < row.target.size(); ++t) {
      tokens.emplace_back();
      if (row.target[t] < 0) continue;
      tokens.back() = token_target(row.teacher, t, row.target[t], variant, config);
      K = std::max(K, tokens.back().entries.size() + 1);
    }
  }
  const auto T = static_cast<int64_t>(tokens.size());
  const auto options = at::TensorOptions(at::kDouble);
  SparseTargets out{at::full({T, static_cast<int64_t>(K)}, -1, at::TensorOptions(at::kLong)),
                    at::zeros({T, static_cast<int64_t>(K)}, options), at::zeros({T}, options),
                    at::zeros({T}, options), at::zeros({T}, options)};
  int64_t* id = out.id.data_ptr<int64_t>();
  double *weight = out.weight.data_ptr<double>(), *total = out.total.data_ptr<double>(),
         *rest = out.rest.data_ptr<double>(), *entropy = out.entropy.data_ptr<double>();
  size_t at = 0;
  for (const Row& row : rows)
    for (const int32_t label : row.target) {
      const WeightedTarget& token = tokens[at];
      id[at * K] = label;
      size_t column = at * K + 1;
      for (const Weighted& e : token.entries) {
        const size_t place = e.id == label ? at * K : column++;
        id[place] = e.id;
        weight[place] = e.weight;
        entropy[at] += minus_x_ln_x(e.weight);
      }
      total[at] = token.total;
      rest[at] = token.rest;
      entropy[at] += minus_x_ln_x(token.rest);
      ++at;
    }
  return out;
}

}  // namespace maniple

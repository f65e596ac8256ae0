// What a teacher's distribution becomes: spec model.md 3.2, 3.6, 3.7 and 9.4.5.
#include "objectives/teacher_targets.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/random.h"
#include "head_on_ranks.h"
#include "objectives/distill_targets.h"

namespace maniple {
namespace {

constexpr int64_t V = 61, D = 5, S = 40;

at::Tensor random(int64_t rows, const char* name) {
  at::Tensor t = at::empty({rows, D}, at::TensorOptions(at::kDouble));
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data_ptr<double>()[i] = normal(hash_name(name), static_cast<uint64_t>(i));
  return t;
}

std::vector<Row> rows_of(int64_t n) {
  std::vector<Row> rows(static_cast<size_t>(n));
  for (int64_t r = 0; r < n; ++r)
    for (int64_t t = 0; t < S; ++t) {
      Row& row = rows[static_cast<size_t>(r)];
      row.sample = {11, r};
      row.target.push_back(t == 7 ? -1 : static_cast<int32_t>((t * 13 + r) % V));
    }
  return rows;
}

std::vector<TeacherRow> taught(const TargetSpec& spec, int ranks = 1, int64_t n = 3) {
  const at::Tensor h = random(n * S, "h"), W = random(V, "W");
  std::vector<TeacherRow> out;
  run_local_ranks(ranks, [&](std::unique_ptr<Communicator> tp) {
    const Parameter head = part_of_head(W, tp->rank(), ranks);
    const auto got = teacher_targets(h, head, V, rows_of(n), spec, *tp);
    if (tp->rank() == 0) out = got;
  });
  return out;
}
at::Tensor probabilities(int64_t n = 3) {
  return at::softmax(at::matmul(random(n * S, "h"), random(V, "W").t()), 1);
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6f);
}

class EveryKind : public testing::TestWithParam<TargetSpec> {};

TEST_P(EveryKind, FourRanksSayWhatOneSays) {
  const auto one = taught(GetParam()), four = taught(GetParam(), 4);
  for (size_t r = 0; r < one.size(); ++r) {
    EXPECT_EQ(one[r].begin, four[r].begin);
    EXPECT_EQ(one[r].id, four[r].id);
    EXPECT_EQ(one[r].count, four[r].count);
    expect_near(one[r].log_value, four[r].log_value);
    expect_near(one[r].mass, four[r].mass);
    expect_near(one[r].label_logp, four[r].label_logp);
  }
}

TEST_P(EveryKind, MassAndLabelAreThoseOfTheDistribution) {
  const at::Tensor p = GetParam().temperature == 1
                           ? probabilities()
                           : at::softmax(probabilities().log() / GetParam().temperature, 1);
  const std::vector<Row> rows = rows_of(3);
  const auto got = taught(GetParam());
  for (size_t r = 0; r < rows.size(); ++r)
    for (size_t t = 0; t < rows[r].target.size(); ++t) {
      const auto begin = static_cast<size_t>(got[r].begin[t]), end = static_cast<size_t>(got[r].begin[t + 1]);
      if (rows[r].target[t] < 0) {
        EXPECT_EQ(begin, end);
        EXPECT_EQ(got[r].mass[t], 0);
        continue;
      }
      const at::Tensor row = p[static_cast<int64_t>(r) * S + static_cast<int64_t>(t)];
      double mass = 0;
      for (size_t i = begin; i < end; ++i) mass += row[got[r].id[i]].item<double>();
      EXPECT_NEAR(got[r].mass[t], mass, 1e-6);
      EXPECT_NEAR(got[r].label_logp[t], std::log(row[rows[r].target[t]].item<double>()), 1e-6);
    }
}

TEST_P(EveryKind, WhichRowsAreTogetherDoesNotMatter) {
  const auto many = taught(GetParam(), 1, 3), one = taught(GetParam(), 1, 1);
  EXPECT_EQ(many[0].id, one[0].id);
  EXPECT_EQ(many[0].count, one[0].count);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, EveryKind,
    testing::Values(TargetSpec{TargetKind::kCounts, 50}, TargetSpec{TargetKind::kSampled, 256},
                    TargetSpec{TargetKind::kImportance, 30, 1, 0.5},
                    TargetSpec{TargetKind::kTopK, 5, 1, 1, 0}, TargetSpec{TargetKind::kTopK, 9, 2, 1, 0},
                    TargetSpec{TargetKind::kTopK, 1000, 1, 1, 0}),
    [](const auto& info) {
      return std::string(to_string(info.param.kind)) + std::to_string(info.param.num);
    });

TEST(TeacherTargets, CountsAreUnbiased) {
  // Over M draws of N the mean of c / N is t within 5 standard deviations.
  constexpr int64_t M = 400;
  const at::Tensor p = probabilities(1);
  at::Tensor sum = at::zeros_like(p);
  for (int64_t m = 0; m < M; ++m) {
    const TeacherRow row = taught({TargetKind::kCounts, 50, 1, 1, static_cast<uint64_t>(m)}, 1, 1)[0];
    for (int64_t t = 0; t < S; ++t)
      for (auto i = static_cast<size_t>(row.begin[static_cast<size_t>(t)]);
           i < static_cast<size_t>(row.begin[static_cast<size_t>(t) + 1]); ++i)
        sum[t][row.id[i]] += static_cast<double>(row.count[i]) / 50;
  }
  for (int64_t t = 0; t < S; ++t) {
    if (t == 7) continue;
    const at::Tensor sigma = (p[t] * (1 - p[t]) / (50.0 * M)).sqrt();
    // Of what is drawn 25 times or more: the rest is far from normal.
    EXPECT_LT(((sum[t] / M - p[t]).abs() / sigma * (p[t] * 50.0 * M > 25)).max().item<double>(), 5);
  }
}

TEST(TeacherTargets, ImportanceWeightsAreUnbiasedWithoutNormalisation) {
  constexpr int64_t M = 400;
  const at::Tensor p = probabilities(1);
  at::Tensor sum = at::zeros_like(p);
  for (int64_t m = 0; m < M; ++m) {
    const TeacherRow row = taught({TargetKind::kImportance, 50, 1, 0.5, static_cast<uint64_t>(m)}, 1, 1)[0];
    for (int64_t t = 0; t < S; ++t)
      for (auto i = static_cast<size_t>(row.begin[static_cast<size_t>(t)]);
           i < static_cast<size_t>(row.begin[static_cast<size_t>(t) + 1]); ++i)
        sum[t][row.id[i]] +=
            row.count[i] / 50.0 * std::exp(static_cast<double>(row.log_value[i]));
  }
  for (int64_t t = 0; t < S; ++t) {
    if (t == 7) continue;
    const at::Tensor q = p[t].sqrt() / p[t].sqrt().sum();
    const at::Tensor sigma = p[t] / q * (q * (1 - q) / (50.0 * M)).sqrt();
    EXPECT_LT(((sum[t] / M - p[t]).abs() / sigma * (q * 50.0 * M > 25)).max().item<double>(), 5);
  }
}

TEST(TeacherTargets, TopKIsTheLargest) {
  const TeacherRow row = taught({TargetKind::kTopK, 5, 1, 1, 0})[0];
  const at::Tensor p = probabilities();
  EXPECT_NEAR(row.mass[0], std::get<0>(p[0].topk(5)).sum().item<double>(), 1e-6);
}

// A row whose teacher gave ids 2, 5, 6 with probabilities 0.5, 0.25, 0.125.
Row simple_row(int32_t label) {
  Row row;
  row.target = {label};
  row.teacher = {{0, 3}, {2, 5, 6}, {2, 1, 1}, {}, {0.875f}, {-1}};
  for (double p : {0.5, 0.25, 0.125}) row.teacher.log_value.push_back(static_cast<float>(std::log(p)));
  return row;
}
SparseTargets simple(const std::string& variant, int32_t label = 9, int64_t top_k = 3) {
  DistillConfig c;
  c.variant = variant;
  c.draws = 4;
  c.top_k = top_k;
  return sparse_targets({simple_row(label)}, c);
}
std::vector<double> list(const at::Tensor& t) {
  return {t.const_data_ptr<double>(), t.const_data_ptr<double>() + t.numel()};
}
void expect_list(const at::Tensor& t, const std::vector<double>& wanted) {
  const std::vector<double> got = list(t);
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-7);
}

TEST(SparseTargets, EachVariantIsItsFormula) {
  EXPECT_EQ(simple("sample_counts").id[0][0].item<int64_t>(), 9);  // the label comes first
  expect_list(simple("sample_counts").weight, {0, 0.5, 0.25, 0.25});
  expect_list(simple("sample_renorm").weight, {0, 4. / 7, 2. / 7, 1. / 7});
  expect_list(simple("topk_renorm").weight, {0, 4. / 7, 2. / 7, 1. / 7});
  expect_list(simple("topk_renorm", 9, 2).weight, {0, 2. / 3, 1. / 3});
  expect_list(simple("topk_raw").weight, {0, 0.5, 0.25, 0.125});
  expect_list(simple("topk_raw").total, {0.875});
  expect_list(simple("topk_ghost").rest, {0.125});
  expect_list(simple("topk_to_label").weight, {0.125, 0.5, 0.25, 0.125, 0});
  expect_list(simple("topk_to_label", 5).weight, {0.375, 0.5, 0.125, 0});
  const double sum = 0.5 * 0.5 + 0.25 * 0.25 + 0.25 * 0.125;
  expect_list(simple("importance").weight,
              {0, 0.25 / sum, 0.0625 / sum, 0.03125 / sum});
}

TEST(SparseTargets, MaskedTokensHaveNoTarget) {
  const SparseTargets t = simple("topk_ghost", -1);
  EXPECT_EQ(t.total.item<double>(), 0);
  EXPECT_EQ(t.rest.item<double>(), 0);
  EXPECT_LT(t.id.max().item<int64_t>(), 0);
}

TEST(SparseTargets, AStoreServesTheVariantsOfItsKind) {
  DistillConfig c;
  c.variant = "topk_ghost";
  c.top_k = 5;
  EXPECT_EQ(target_difference({TargetKind::kTopK, 20, 1, 1, 0}, c), "");  // a larger k serves a smaller
  EXPECT_NE(target_difference({TargetKind::kTopK, 4, 1, 1, 0}, c), "");
  EXPECT_NE(target_difference({TargetKind::kTopK, 20, 2, 1, 0}, c), "");
  EXPECT_NE(target_difference({TargetKind::kCounts, 50}, c), "");
  c.variant = "sample_counts";
  EXPECT_EQ(target_difference({TargetKind::kCounts, 50, 1, 1, 99}, c), "");  // whatever the seed
  EXPECT_NE(target_difference({TargetKind::kCounts, 64}, c), "");
  EXPECT_NE(target_difference({TargetKind::kSampled, 50}, c), "");
}

}  // namespace
}  // namespace maniple

// Losses and gradients against the golden numbers of spec model.md 3.5 and 3.7, on 1, 2 and 4 ranks,
// and the properties that need no reference (9.4).
#include "objectives/distill_loss.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/files.h"
#include "core/random.h"
#include "head_on_ranks.h"

namespace maniple {
namespace {

using Json = nlohmann::json;
constexpr double kTolerance = 1e-12;

Json golden() {
  return Json::parse(read_file(MANIPLE_TEST_DATA "/golden/distillation.json", "golden"));
}

at::Tensor tensor(const Json& values) {
  return at::tensor(values.get<std::vector<double>>(), at::TensorOptions(at::kDouble));
}
at::Tensor identity(int64_t n) { return at::eye(n, at::TensorOptions(at::kDouble)); }

// One token's row, as a store would give it.
Row row_of(const Json& g, const std::string& variant) {
  Row row;
  row.target = {g["label"].get<int32_t>()};
  TeacherRow& t = row.teacher;
  t.mass = {1};
  std::map<int32_t, std::pair<int32_t, double>> entries;  // id -> count, p
  if (variant.starts_with("topk")) {
    for (size_t i = 0; i < g["topk_ids"].size(); ++i)
      entries[g["topk_ids"][i]] = {1, g["topk_probs"][i].get<double>()};
  } else {
    for (const auto& [id, count] : g["counts"].items()) {
      const int32_t i = std::stoi(id);
      entries[i] = {count.get<int32_t>(), g["teacher_p"][static_cast<size_t>(i)].get<double>()};
    }
  }
  for (const auto& [id, entry] : entries) {
    t.id.push_back(id);
    t.count.push_back(entry.first);
    t.log_value.push_back(static_cast<float>(std::log(entry.second)));
  }
  t.begin = {0, static_cast<int32_t>(t.id.size())};
  return row;
}

// The weights of golden top-k targets come from probabilities that no half or float rounded.
void use_exact_probabilities(SparseTargets& t, const Json& g, const std::string& variant) {
  if (!variant.starts_with("topk")) return;
  std::vector<double> p = g["topk_probs"];
  const std::vector<int64_t> ids = g["topk_ids"];
  double sum = 0;
  for (double x : p) sum += x;
  const double rest = 1 - sum;
  t.entropy.zero_();
  auto* id = t.id.data_ptr<int64_t>();
  auto* weight = t.weight.data_ptr<double>();
  for (int64_t k = 0; k < t.id.numel(); ++k)
    for (size_t i = 0; i < ids.size(); ++i)
      if (id[k] == ids[i]) {
        weight[k] = variant == "topk_renorm" ? p[i] / sum : p[i];
        if (variant == "topk_to_label" && k == 0) weight[k] += rest;
        t.entropy[0] -= weight[k] * std::log(weight[k]);
      }
  if (variant == "topk_ghost" || variant == "topk_raw") t.total.fill_(sum);
  if (variant == "topk_ghost") {
    t.rest.fill_(rest);
    t.entropy[0] -= rest * std::log(rest);
  }
}

struct Result {
  DistillSums sums;
  at::Tensor dz;  // [V]
};

// Loss and dL/dz of one token with logits z: the head is the identity. On `ranks` ranks.
Result run(const at::Tensor& z, const at::Tensor& teacher_z, const SparseTargets& sparse,
           int64_t label, bool full, double alpha, double temperature, int ranks) {
  const int64_t V = z.numel();
  Result out;
  run_local_ranks(ranks, [&](std::unique_ptr<Communicator> tp) {
    Parameter head = part_of_head(identity(V), tp->rank(), ranks);
    Parameter teacher = part_of_head(identity(V), tp->rank(), ranks);
    DistillTargets targets{sparse, {}, nullptr};
    if (full) {
      targets.h_TD = teacher_z.unsqueeze(0);
      targets.head = &teacher;
    }
    at::Tensor h = z.clone().unsqueeze(0).requires_grad_();
    DistillSums sums;
    const at::Tensor loss =
        distill_loss(h, head, V, at::full({1}, label, at::TensorOptions(at::kLong)), targets, alpha,
                     temperature, 1, *tp, sums);
    loss.backward();
    EXPECT_NEAR(loss.item<double>(), sums.loss, kTolerance);
    if (tp->rank() == 0) out = {sums, h.grad()[0].clone()};
  });
  return out;
}

struct Case {
  std::string name, variant;  // of the golden numbers, of the config
  double alpha = 0, temperature = 1;
  bool less_entropy = false;
};

class GoldenLoss : public testing::TestWithParam<std::tuple<Case, int>> {};

TEST_P(GoldenLoss, ValueAndGradientAgree) {
  const auto& [c, ranks] = GetParam();
  const Json g = golden(), &wanted = g["losses"][c.name];
  const at::Tensor z = tensor(g["student_logits"]), teacher_z = tensor(g["teacher_logits"]);
  SparseTargets sparse;
  const bool full = c.variant == "full";
  if (!full) {
    DistillConfig config;
    config.variant = c.variant;
    config.draws = g["draws"];
    config.top_k = 3;
    sparse = sparse_targets({row_of(g, c.variant)}, config);
    use_exact_probabilities(sparse, g, c.variant);
  }
  const Result r = run(z, teacher_z, sparse, g["label"], full, c.alpha, c.temperature, ranks);
  EXPECT_NEAR(r.sums.loss - (c.less_entropy ? r.sums.entropy : 0), wanted["value"].get<double>(),
              kTolerance);
  EXPECT_LT((r.dz - tensor(wanted["grad"])).abs().max().item<double>(), kTolerance);
  EXPECT_NEAR(r.sums.ce, g["losses"]["ce"]["value"].get<double>(), kTolerance);
  EXPECT_EQ(r.sums.num_targets, 1);
}

const Case kCases[] = {{"ce", "sample_counts", 1},
                       {"full", "full"},
                       {"full_kl", "full", 0, 1, true},
                       {"full_kl_tau2_x4", "full", 0, 2, true},
                       {"topk_renorm", "topk_renorm"},
                       {"topk_raw", "topk_raw"},
                       {"topk_ghost", "topk_ghost"},
                       {"topk_ghost_kl", "topk_ghost", 0, 1, true},
                       {"topk_to_label", "topk_to_label"},
                       {"sample_counts", "sample_counts"},
                       {"ce0.3_counts0.7", "sample_counts", 0.3}};
INSTANTIATE_TEST_SUITE_P(Section35, GoldenLoss,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(1, 2, 4)),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param).name + "_tp" +
                                              std::to_string(std::get<1>(info.param));
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

TEST(DistillLoss, SplitOverFourRanksGivesTheValueOfSection37) {
  const Json g = golden();
  DistillConfig config;
  config.draws = g["draws"];
  const SparseTargets sparse = sparse_targets({row_of(g, "sample_counts")}, config);
  const Result r = run(tensor(g["student_logits"]), {}, sparse, g["label"], false, 0, 1, 4);
  EXPECT_NEAR(r.sums.kd, g["vocab_parallel_4"].get<double>(), kTolerance);
}

// Random tokens: T tokens, logits h W^T.
struct Problem {
  explicit Problem(int64_t T, int64_t V, int64_t D, uint64_t seed) {
    auto fill = [&](const at::Tensor& t, const char* name) {
      for (int64_t i = 0; i < t.numel(); ++i)
        t.data_ptr<double>()[i] = normal(key_of(seed, hash_name(name)), static_cast<uint64_t>(i));
    };
    const auto options = at::TensorOptions(at::kDouble);
    fill(h = at::empty({T, D}, options), "h");
    fill(W = at::empty({V, D}, options), "W");
    fill(teacher_h = at::empty({T, D}, options), "teacher_h");
    fill(teacher_W = at::empty({V, D}, options), "teacher_W");
    label = at::empty({T}, at::TensorOptions(at::kLong));
    for (int64_t t = 0; t < T; ++t)
      label.data_ptr<int64_t>()[t] =
          t % 5 == 3 ? -1 : static_cast<int64_t>(uniform(seed + 9, static_cast<uint64_t>(t)) * static_cast<double>(V));
  }
  at::Tensor h, W, teacher_h, teacher_W, label;
};

struct Gradients {
  DistillSums sums;
  at::Tensor dh, dW;
};
Gradients gradients(const Problem& p, const SparseTargets& sparse, bool full, double alpha,
                    double temperature, int ranks, at::ScalarType type = at::kDouble) {
  Gradients out;
  std::vector<at::Tensor> parts(static_cast<size_t>(ranks));
  run_local_ranks(ranks, [&](std::unique_ptr<Communicator> tp) {
    Parameter head = part_of_head(p.W, tp->rank(), ranks, type);
    Parameter teacher = part_of_head(p.teacher_W, tp->rank(), ranks, type);
    const auto wide = head.grad.scalar_type();
    DistillTargets targets;
    if (full) {
      targets.head = &teacher;
      targets.h_TD = p.teacher_h.to(type);
    } else {
      targets.sparse = {sparse.id, sparse.weight.to(wide), sparse.total.to(wide),
                        sparse.rest.to(wide), sparse.entropy.to(wide)};
    }
    at::Tensor h = p.h.to(type).clone().requires_grad_();
    DistillSums sums;
    distill_loss(h, head, p.W.size(0), p.label, targets, alpha, temperature, 0.5, *tp, sums).backward();
    parts[static_cast<size_t>(tp->rank())] = head.grad;
    if (tp->rank() == 0) out.sums = sums, out.dh = h.grad().clone();
  });
  out.dW = at::cat(parts).narrow(0, 0, p.W.size(0));
  return out;
}

SparseTargets random_targets(const Problem& p, int64_t K, double rest) {
  const int64_t T = p.h.size(0), V = p.W.size(0);
  const auto options = at::TensorOptions(at::kDouble);
  SparseTargets s{at::full({T, K}, -1, at::TensorOptions(at::kLong)), at::zeros({T, K}, options),
                  at::zeros({T}, options), at::zeros({T}, options), at::zeros({T}, options)};
  for (int64_t t = 0; t < T; ++t) {
    const int64_t label = p.label[t].item<int64_t>();
    s.id[t][0] = label;
    if (label < 0) continue;
    for (int64_t k = 1; k < K; ++k) {
      const int64_t id = (label + k * 3 + t) % V;
      if (id == label || (s.id[t] == id).any().item<bool>()) continue;
      s.id[t][k] = id;
      s.weight[t][k] = 0.1 * static_cast<double>(k);
    }
    if (t % 2) s.weight[t][0] = 0.05;
    s.weight[t].mul_((1 - rest) / s.weight[t].sum().item<double>());
    s.total[t] = s.weight[t].sum();
    s.rest[t] = rest;
  }
  return s;
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

TEST(DistillLoss, RanksDoNotChangeIt) {
  const Problem p(300, 37, 6, 1);  // 37 columns leave padding on the last rank
  for (const bool full : {false, true})
    for (const double temperature : {1.0, 2.0})
      for (const double rest : {0.0, 0.2}) {
        const SparseTargets sparse = random_targets(p, 5, rest);
        const Gradients one = gradients(p, sparse, full, 0.3, temperature, 1);
        const Gradients four = gradients(p, sparse, full, 0.3, temperature, 4);
        EXPECT_NEAR(one.sums.loss, four.sums.loss, 1e-9);
        EXPECT_NEAR(one.sums.entropy, four.sums.entropy, 1e-9);
        EXPECT_LT(difference(one.dh, four.dh), 1e-11);
        EXPECT_LT(difference(one.dW, four.dW), 1e-11);
      }
}

TEST(DistillLoss, GradientIsTheDerivative) {
  const Problem p(6, 11, 3, 2);
  for (const bool full : {false, true})
    for (const double temperature : {1.0, 1.7}) {
      const SparseTargets sparse = random_targets(p, 4, 0.25);
      const Gradients at_h = gradients(p, sparse, full, 0.3, temperature, 1);
      for (int64_t t = 0; t < p.h.size(0); ++t)
        for (int64_t d = 0; d < p.h.size(1); ++d) {
          Problem q = p;
          constexpr double step = 1e-6;
          q.h = p.h.clone();
          q.h[t][d] += step;
          const double up = gradients(q, sparse, full, 0.3, temperature, 1).sums.loss;
          q.h[t][d] -= 2 * step;
          const double down = gradients(q, sparse, full, 0.3, temperature, 1).sums.loss;
          EXPECT_NEAR(at_h.dh[t][d].item<double>(), 0.5 * (up - down) / (2 * step), 1e-7);
        }
    }
}

TEST(DistillLoss, SupportOfTheWholeVocabularyIsFull) {
  const Problem p(20, 13, 4, 3);
  const Gradients full = gradients(p, {}, true, 0.2, 1, 1);
  const at::Tensor probability = at::softmax(at::matmul(p.teacher_h, p.teacher_W.t()), 1);
  SparseTargets s = random_targets(p, 13, 0);
  for (int64_t t = 0; t < 20; ++t) {
    const int64_t label = p.label[t].item<int64_t>();
    if (label < 0) continue;
    for (int64_t k = 0; k < 13; ++k) {
      const int64_t id = k == 0 ? label : k <= label ? k - 1 : k;
      s.id[t][k] = id;
      s.weight[t][k] = probability[t][id];
    }
    s.total[t] = 1;
  }
  const Gradients sparse = gradients(p, s, false, 0.2, 1, 1);
  EXPECT_NEAR(full.sums.loss, sparse.sums.loss, 1e-10);
  EXPECT_LT(difference(full.dh, sparse.dh), 1e-12);
  EXPECT_LT(difference(full.dW, sparse.dW), 1e-12);
}

TEST(DistillLoss, SinglePrecisionAgreesWithDouble) {
  const Problem p(200, 300, 16, 4);
  for (const bool full : {false, true}) {
    const SparseTargets sparse = random_targets(p, 6, 0.1);
    const Gradients wide = gradients(p, sparse, full, 0.3, 1, 1);
    const Gradients narrow = gradients(p, sparse, full, 0.3, 1, 1, at::kFloat);
    EXPECT_NEAR(wide.sums.loss / narrow.sums.loss, 1, 1e-5);
    EXPECT_LT(difference(wide.dh, narrow.dh), 1e-4 * wide.dh.abs().max().item<double>());
    EXPECT_LT(difference(wide.dW, narrow.dW), 1e-4 * wide.dW.abs().max().item<double>());
  }
}

TEST(DistillLoss, WithoutGradientsOnlySums) {
  const Problem p(10, 13, 4, 5);
  const at::NoGradGuard no_grad;
  Parameter head = part_of_head(p.W, 0, 1);
  auto tp = make_single_communicator();
  DistillSums sums;
  const DistillTargets targets{random_targets(p, 3, 0), {}, nullptr};
  distill_loss(p.h, head, 13, p.label, targets, 0, 1, 1, *tp, sums);
  EXPECT_GT(sums.loss, 0);
  EXPECT_EQ(head.grad.abs().sum().item<double>(), 0);
}

}  // namespace
}  // namespace maniple

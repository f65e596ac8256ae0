// Logits from a KV cache are those of the whole sequence, for every kind of attention.
#include "trainer/inference.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/kv_cache.h"

namespace maniple {
namespace {

std::string golden(const std::string& family) {
  return std::string(MANIPLE_TEST_DATA) + "/golden/" + family;
}

// Windows shorter than the sequence, biases, QK-norm, two RoPE bases, post norms: among the four.
class KvCacheLogits : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(KvCacheLogits, AreThoseOfTheWholeSequence) {
  const auto& [family, precision] = GetParam();
  InferenceModel model(golden(family), precision, "cpu");
  const int64_t S = 40, V = model.model().vocab_size;
  const at::Tensor ids =
      (at::arange(2 * S, at::TensorOptions(at::kLong)) * 7919 + 13).remainder(V).view({2, S});
  const at::Tensor whole = model.logits(ids);
  const double tolerance = precision == "fp64" ? 1e-10 : 1e-5;
  // As a prompt and then token by token; all token by token; in uneven pieces.
  for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{11}, {1}, {3, 17, 1, 9}}) {
    DecoderCache cache;
    std::vector<at::Tensor> got;
    int64_t at = 0;
    for (size_t i = 0; at < S; ++i) {
      const int64_t n = i < pieces.size() ? pieces[i] : 1;
      got.push_back(model.logits(ids.narrow(1, at, n), cache));
      at += n;
    }
    EXPECT_EQ(cache.num_tokens, S);
    const double worst = (at::cat(got, 1) - whole).abs().max().item<double>();
    EXPECT_LE(worst, tolerance) << pieces.size() << " pieces";
  }
}

INSTANTIATE_TEST_SUITE_P(Families, KvCacheLogits,
                         testing::Combine(testing::Values("qwen3_moe", "qwen2_moe", "mixtral",
                                                          "gemma3_text"),
                                          testing::Values("fp64", "fp32")),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param);
                         });

TEST(KvCache, SlidingLayersKeepTheWindowOnly) {
  KvCache cache;
  const auto token = [](int64_t i) { return at::full({1, 1, 1, 2}, static_cast<double>(i)); };
  for (int64_t i = 0; i < 500; ++i) {
    const auto [k, v] = cache.append(token(i), token(-i), 3);
    const int64_t n = std::min<int64_t>(i, 3) + 1;
    ASSERT_EQ(k.size(2), n);
    for (int64_t j = 0; j < n; ++j) {
      EXPECT_EQ(k[0][0][j][0].item<double>(), static_cast<double>(i - n + 1 + j));
      EXPECT_EQ(v[0][0][j][1].item<double>(), -static_cast<double>(i - n + 1 + j));
    }
    EXPECT_LE(k.storage().nbytes(), 64u * 2 * sizeof(float));
  }
}

// A context of 32 tokens overflows several times; the draws depend on the seed alone.
TEST(Sample, GoesOnBeyondTheContext) {
  InferenceModel model(golden("gemma3_text"), "fp32", "cpu");
  const auto draw = [&](uint64_t seed, double temperature) {
    std::vector<int64_t> ids;
    model.sample("\x01\x02\x03", 2 * model.context() + 5, temperature, 0.95, seed,
                 [&](int64_t id) { ids.push_back(id); });
    return ids;
  };
  const auto first = draw(1, 1);
  EXPECT_EQ(static_cast<int64_t>(first.size()), 2 * model.context() + 5);
  EXPECT_EQ(first, draw(1, 1));
  EXPECT_NE(first, draw(2, 1));
  EXPECT_THROW(model.sample("abc", 1, 0, 1, 1, [](int64_t) {}), DataError);  // no byte tokens
  EXPECT_EQ(draw(1, 0), draw(2, 0));  // the most likely token needs no draw
}

}  // namespace
}  // namespace maniple

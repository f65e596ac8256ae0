#include "kernels/attention.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

namespace maniple {
namespace {

struct Case {
  int64_t B, S, H, G, d, window;
  std::vector<int64_t> documents;  // where new ones begin
};

at::Tensor first_of(const Case& c) {
  at::Tensor first = at::empty({c.B, c.S}, at::TensorOptions(at::kInt));
  auto f = first.accessor<int32_t, 2>();
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t i = 0, start = 0; i < c.S; ++i) {
      for (int64_t begin : c.documents)
        if (begin + b == i) start = i;
      f[b][i] = static_cast<int32_t>(c.window ? std::max(start, i - c.window + 1) : start);
    }
  return first;
}

class AttentionKernel : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionKernel,
    testing::Values(Case{1, 1, 1, 1, 16, 0, {}}, Case{2, 64, 4, 2, 16, 0, {}},
                    Case{2, 77, 4, 4, 18, 0, {}}, Case{1, 200, 6, 2, 64, 0, {}},
                    Case{1, 130, 2, 1, 72, 32, {}}, Case{2, 300, 4, 2, 32, 0, {3, 40, 41, 200}},
                    Case{1, 700, 2, 1, 16, 100, {50, 640}}, Case{1, 1100, 2, 2, 64, 0, {}},
                    Case{1, 600, 1, 1, 128, 1, {}}),
    [](const auto& info) { return "Case" + std::to_string(info.index); });

// The fused kernel against the fp64 reference: fp32 to its round-off, bf16 to a few of its quanta.
TEST_P(AttentionKernel, AgreesWithTheReferenceInFp64) {
  const Case& c = GetParam();
  at::manual_seed(5);
  const auto wide = at::TensorOptions(at::kDouble);
  const at::Tensor first = first_of(c);
  const double scale = 1 / std::sqrt(static_cast<double>(c.d));
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    auto operand = [&](int64_t heads) { return at::randn({c.B, c.S, heads, c.d}, wide).to(type); };
    const at::Tensor q = operand(c.H), k = operand(c.G), v = operand(c.G), dy = operand(c.H);
    const auto q64 = q.to(at::kDouble), k64 = k.to(at::kDouble), v64 = v.to(at::kDouble);
    const AttentionResult want = attention_forward(q64, k64, v64, first, scale);
    const AttentionResult got = attention_forward(q, k, v, first, scale);
    const double tolerance = type == at::kFloat ? 2e-5 : 0.05;
    auto expect_close = [&](const at::Tensor& a, const at::Tensor& b, const char* what) {
      EXPECT_LT((a.to(at::kDouble) - b).abs().max().item<double>(),
                tolerance * std::max(1.0, b.abs().max().item<double>()))
          << what << " " << c10::toString(type);
    };
    expect_close(got.y, want.y, "y");
    expect_close(got.lse, want.lse, "lse");
    const auto want_d = attention_backward(dy.to(at::kDouble), q64, k64, v64, want, first, scale);
    const auto got_d = attention_backward(dy, q, k, v, got, first, scale);
    expect_close(got_d.q, want_d.q, "dq");
    expect_close(got_d.k, want_d.k, "dk");
    expect_close(got_d.v, want_d.v, "dv");
  }
}

// The reference itself against autograd over plain operations.
TEST_P(AttentionKernel, ReferenceGradientsAreThoseOfAutograd) {
  const Case& c = GetParam();
  at::manual_seed(6);
  const auto wide = at::TensorOptions(at::kDouble);
  auto operand = [&](int64_t heads) {
    return at::randn({c.B, c.S, heads, c.d}, wide).requires_grad_();
  };
  const at::Tensor q = operand(c.H), k = operand(c.G), v = operand(c.G);
  const at::Tensor dy = at::randn({c.B, c.S, c.H, c.d}, wide), first = first_of(c);
  auto heads = [&](const at::Tensor& x) {
    return x.transpose(1, 2).repeat_interleave(c.H / x.size(2), 1);
  };
  const at::Tensor index = at::arange(c.S);
  const at::Tensor visible = (index.unsqueeze(0) <= index.unsqueeze(1))
                                 .logical_and(index >= first.unsqueeze(2)).unsqueeze(1);
  const at::Tensor y = at::scaled_dot_product_attention(heads(q), heads(k), heads(v), visible, 0.0,
                                                        false, 0.3).transpose(1, 2);
  y.backward(dy);
  const auto out = attention_forward(q.detach(), k.detach(), v.detach(), first, 0.3);
  const auto d = attention_backward(dy, q.detach(), k.detach(), v.detach(), out, first, 0.3);
  EXPECT_TRUE(at::allclose(out.y, y, 0, 1e-12));
  EXPECT_TRUE(at::allclose(d.q, q.grad(), 0, 1e-11));
  EXPECT_TRUE(at::allclose(d.k, k.grad(), 0, 1e-11));
  EXPECT_TRUE(at::allclose(d.v, v.grad(), 0, 1e-11));
}

TEST(AttentionThreads, DoNotChangeBits) {
  at::manual_seed(7);
  const Case c{2, 300, 4, 2, 32, 0, {}};
  auto operand = [&](int64_t heads) { return at::randn({c.B, c.S, heads, c.d}); };
  const at::Tensor q = operand(c.H), k = operand(c.G), v = operand(c.G), dy = operand(c.H);
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results[2];
  for (int run = 0; run < 2; ++run) {
    at::set_num_threads(run ? 3 : 1);
    const auto out = attention_forward(q, k, v, first_of(c), 0.2);
    const auto d = attention_backward(dy, q, k, v, out, first_of(c), 0.2);
    results[run] = {out.y, out.lse, d.q, d.k, d.v};
  }
  at::set_num_threads(threads);
  for (size_t i = 0; i < results[0].size(); ++i) EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << i;
}

}  // namespace
}  // namespace maniple

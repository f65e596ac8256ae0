// Rates of the matrix products of the reference models: multiply() against ATen's mm, and that of all
// experts of a layer at once against ATen's bmm, alternating.
// Arguments: threads (2). One line per shape: GFLOP/s of both (best of 9) and their ratio.
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>

#include "kernels/gemm.h"

namespace {

using maniple::multiply;
using maniple::multiply_add;

double seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void compare(const char* name, double flop, const std::function<void()>& own,
             const std::function<void()>& aten) {
  double best_own = 1e9, best_aten = 1e9;
  own();
  aten();
  for (int i = 0; i < 9; ++i) {
    best_own = std::min(best_own, seconds(own));
    best_aten = std::min(best_aten, seconds(aten));
  }
  std::printf("%-34s %7.0f %7.0f  %.2f\n", name, flop / best_own * 1e-9, flop / best_aten * 1e-9,
              best_aten / best_own);
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(argc > 1 ? std::stoi(argv[1]) : 2);
  std::printf("%-34s %7s %7s  ratio\n", "GFLOP/s", "own", "ATen");
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    const auto options = at::TensorOptions(type);
    auto random = [&](int64_t m, int64_t n) { return at::randn({m, n}).to(type); };
    struct Shape {
      int64_t tokens, in, out;
    };
    for (const Shape s : {Shape{4096, 512, 8192}, {4096, 512, 512}, {512, 512, 1024}, {512, 512, 512},
                          {4096, 1024, 1024}, {512, 1024, 1024}, {200, 72, 96}}) {
      const double flop = 2.0 * static_cast<double>(s.tokens * s.in * s.out);
      const at::Tensor x = random(s.tokens, s.in), w = random(s.out, s.in), dy = random(s.tokens, s.out);
      at::Tensor y = at::empty({s.tokens, s.out}, options), dx = at::empty_like(x);
      at::Tensor grad = at::zeros({s.out, s.in});
      const std::string name = std::string(type == at::kFloat ? "fp32 " : "bf16 ") +
                               std::to_string(s.tokens) + " x " + std::to_string(s.in) + " x " +
                               std::to_string(s.out);
      compare((name + " y = x W^T").c_str(), flop, [&] { multiply(x, w.t(), y); },
              [&] { at::mm_out(y, x, w.t()); });
      compare((name + " dx = dy W").c_str(), flop, [&] { multiply(dy, w, dx); },
              [&] { at::mm_out(dx, dy, w); });
      compare((name + " dW += dy^T x").c_str(), flop, [&] { multiply_add(dy.t(), x, grad); },
              [&] {
                if (type == at::kFloat)
                  grad.addmm_(dy.t(), x);
                else
                  grad.add_(at::mm(dy.t(), x));
              });
    }
    struct Experts {
      int64_t experts, tokens, in, out;
    };
    for (const Experts s : {Experts{16, 512, 512, 1024}, {32, 512, 1024, 1024}}) {
      auto random3 = [&](int64_t m, int64_t n) { return at::randn({s.experts, m, n}).to(type); };
      const double flop = 2.0 * static_cast<double>(s.experts * s.tokens * s.in * s.out);
      const at::Tensor x = random3(s.tokens, s.in), w = random3(s.out, s.in), dy = random3(s.tokens, s.out);
      at::Tensor y = at::empty_like(dy), dx = at::empty_like(x);
      at::Tensor grad = at::zeros({s.experts, s.out, s.in});
      std::vector<maniple::Product> forward, to_x, to_w;
      for (int64_t e = 0; e < s.experts; ++e) {
        forward.push_back({x[e], w[e].t(), y[e]});
        to_x.push_back({dy[e], w[e], dx[e]});
        to_w.push_back({dy[e].t(), x[e], grad[e], true});
      }
      const std::string name = std::string(type == at::kFloat ? "fp32 " : "bf16 ") +
                               std::to_string(s.experts) + " x " + std::to_string(s.tokens) + " x " +
                               std::to_string(s.in) + " x " + std::to_string(s.out);
      compare((name + " y").c_str(), flop, [&] { multiply(forward); },
              [&] { at::bmm_out(y, x, w.transpose(1, 2)); });
      compare((name + " dx").c_str(), flop, [&] { multiply(to_x); }, [&] { at::bmm_out(dx, dy, w); });
      compare((name + " dW").c_str(), flop, [&] { multiply(to_w); }, [&] {
        if (type == at::kFloat)
          grad.baddbmm_(dy.transpose(1, 2), x);
        else
          grad.add_(at::bmm(dy.transpose(1, 2), x));
      });
    }
  }
}

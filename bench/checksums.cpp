// What the checksums of exact sums cost, one thread: a pass of their own after the fold or the
// decoding, against taking them from each part while it is in the cache. ns per element, medians of
// 41 in turn. Argument: elements (2^22).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/exact_sum.h"

namespace {

using namespace maniple;

constexpr size_t kBlock = 1 << 16;

class Buffers {
 public:
  explicit Buffers(size_t n) : gradient_(n, 1e-3f), sums_(n), decoded_(n) {}
  void fold(size_t at, size_t n) {
    exact_fold(std::span<const float>(gradient_).subspan(at, n), 40, 60, sums(at, n));
  }
  void decode(size_t at, size_t n) {
    exact_decode(sums(at, n), 40, 1.0, std::span(decoded_).subspan(at, n));
  }
  void check(size_t at, size_t n) {
    seen_ += exact_checksum(sums(at, n), 7, static_cast<uint32_t>(at % kBlock)).c2;
  }
  uint64_t seen() const { return seen_; }

 private:
  std::span<int64_t> sums(size_t at, size_t n) { return std::span(sums_).subspan(at, n); }
  std::vector<float> gradient_;
  std::vector<int64_t> sums_;
  std::vector<float> decoded_;
  uint64_t seen_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const size_t n = (argc > 1 ? std::stoul(argv[1]) : size_t{1} << 22) / kBlock * kBlock;
  Buffers buffers(n);
  const auto pass = [&](auto body) {
    const auto start = std::chrono::steady_clock::now();
    for (size_t at = 0; at < n; at += kBlock) body(at);
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start)
               .count() /
           n;
  };
  const auto in_parts = [](size_t at, auto body) {
    for (size_t k = at; k < at + kBlock; k += 1 << 14) body(k, size_t{1} << 14);
  };
  const char* names[] = {"fold", "checksum, a pass of its own", "fold with checksum", "decode",
                         "decode with checksum"};
  std::vector<double> times[5];
  for (int round = 0; round < 41; ++round) {
    times[0].push_back(
        pass([&](size_t at) { in_parts(at, [&](size_t k, size_t m) { buffers.fold(k, m); }); }));
    times[1].push_back(pass([&](size_t at) { buffers.check(at, kBlock); }));
    times[2].push_back(pass([&](size_t at) {
      in_parts(at, [&](size_t k, size_t m) { buffers.fold(k, m), buffers.check(k, m); });
    }));
    times[3].push_back(pass([&](size_t at) { buffers.decode(at, kBlock); }));
    times[4].push_back(
        pass([&](size_t at) { buffers.check(at, kBlock), buffers.decode(at, kBlock); }));
  }
  for (int i = 0; i < 5; ++i) {
    std::nth_element(times[i].begin(), times[i].begin() + 20, times[i].end());
    std::printf("%-28s %.2f\n", names[i], times[i][20]);
  }
  return buffers.seen() == 1;
}

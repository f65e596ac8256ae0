// The kernels of the GPU against their references on the CPU: equal bits.
#include "kernels/device_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/random.h"
#include "kernels/exact_sum.h"
#include "kernels/word_hash.h"
#include "test_device.h"

namespace maniple {
namespace {

constexpr int kQ = 40, kBound = 60;

template <typename T>
std::span<T> span_of(const at::Tensor& t) {
  return {t.data_ptr<T>(), static_cast<size_t>(t.numel())};
}

// Values over many magnitudes, zeros of both signs among them.
at::Tensor values(int64_t n, at::ScalarType type, uint64_t seed) {
  at::Tensor x = at::empty({n}, at::TensorOptions(at::kDouble));
  double* p = x.data_ptr<double>();
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t word = mix64(seed + static_cast<uint64_t>(i) * kGolden);
    const double mantissa = static_cast<double>(static_cast<int64_t>(word)) * 0x1p-63;
    p[i] = i % 17 == 3 ? std::copysign(0.0, mantissa)
                       : std::ldexp(mantissa, static_cast<int>(word % 60) - 50);
  }
  return x.to(type);
}

// Bytes of a host tensor and of one on the GPU.
bool same_bits(const at::Tensor& host, const at::Tensor& device) {
  return host.view({-1}).view(at::kByte).equal(device.cpu().view({-1}).view(at::kByte));
}

template <typename T>
class DeviceKernels : public testing::Test {
 protected:
  static constexpr at::ScalarType type = sizeof(T) == 4 ? at::kFloat : at::kDouble;
  const at::Device gpu = test_device();
  const std::vector<int64_t> sizes = {1, 2, 31, 255, 256, 257, 100003};

  bool fold_on_gpu(const at::Tensor& g, at::Tensor& sums) {
    at::Tensor illegal = at::zeros({1}, at::TensorOptions(gpu).dtype(at::kInt));
    device::exact_fold(g.to(gpu), kQ, kBound, sums, illegal);
    return illegal.item<int32_t>() == 0;
  }
};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(DeviceKernels, Types);

TYPED_TEST(DeviceKernels, FoldGivesTheBitsOfItsReference) {
  using T = TypeParam;
  for (const int64_t n : this->sizes) {
    at::Tensor sums = at::zeros({n}, at::kLong), device_sums = sums.to(this->gpu);
    for (const uint64_t seed : {1, 2, 3}) {
      const at::Tensor g = values(n, this->type, seed);
      EXPECT_TRUE(exact_fold(std::span<const T>(span_of<T>(g)), kQ, kBound, span_of<int64_t>(sums)));
      EXPECT_TRUE(this->fold_on_gpu(g, device_sums));
    }
    EXPECT_TRUE(same_bits(sums, device_sums)) << n;
  }
}

TYPED_TEST(DeviceKernels, FoldRefusesWhatItsReferenceRefuses) {
  using T = TypeParam;
  const double limit = std::ldexp(1.0, kBound - kQ);
  for (const double bad : {limit, -limit, std::nextafter(limit, 0.0), -static_cast<double>(INFINITY),
                           static_cast<double>(NAN), static_cast<double>(std::numeric_limits<T>::max()),
                           std::ldexp(1.0, kBound - kQ - 1)}) {
    at::Tensor g = values(1000, this->type, 5);
    g[997].fill_(bad);
    at::Tensor sums = at::zeros({1000}, at::kLong), device_sums = sums.to(this->gpu);
    EXPECT_EQ(exact_fold(std::span<const T>(span_of<T>(g)), kQ, kBound, span_of<int64_t>(sums)),
              this->fold_on_gpu(g, device_sums))
        << bad;
  }
}

TYPED_TEST(DeviceKernels, DecodeGivesTheBitsOfItsReference) {
  using T = TypeParam;
  for (const int64_t n : this->sizes)
    for (const double factor : {1.0, 1.0 / 3}) {
      at::Tensor sums = (values(n, at::kDouble, 7) * 0x1p61).to(at::kLong);
      at::Tensor out = at::empty({n}, this->type), device_out = out.to(this->gpu);
      exact_decode(std::span<const int64_t>(span_of<int64_t>(sums)), kQ, factor, span_of<T>(out));
      device::exact_decode(sums.to(this->gpu), kQ, factor, device_out);
      EXPECT_TRUE(same_bits(out, device_out)) << n << " " << factor;
    }
}

TYPED_TEST(DeviceKernels, SumsOfSquaresGiveTheBitsOfTheirReference) {
  using T = TypeParam;
  for (const int64_t block : {1, 15, 16, 17, 1000, 1 << 16}) {
    const at::Tensor x = values(5 * block, this->type, 9);
    const at::Tensor sums = device::block_sums_of_squares(x.to(this->gpu), block).cpu();
    ASSERT_EQ(sums.numel(), 5);
    for (int64_t b = 0; b < 5; ++b)
      EXPECT_EQ(sums[b].item<double>(),
                block_sum_of_squares(std::span<const T>(span_of<T>(x.narrow(0, b * block, block)))))
          << block;
  }
  EXPECT_EQ(device::block_sums_of_squares(at::empty({0}, at::TensorOptions(this->gpu)), 16).numel(), 0);
}

TYPED_TEST(DeviceKernels, HashGivesTheBitsOfItsReference) {
  for (const int64_t n : this->sizes) {
    const at::Tensor x = values(n, this->type, 11), bytes = x.view(at::kByte);
    const auto reference = [](const at::Tensor& t) { return word_hash(span_of<uint8_t>(t)); };
    EXPECT_EQ(device::hash(x.to(this->gpu)), reference(bytes)) << n;
    const at::Tensor odd = bytes.narrow(0, 0, bytes.numel() - 3).clone();
    EXPECT_EQ(device::hash(odd.to(this->gpu)), reference(odd)) << n;
  }
  EXPECT_EQ(device::hash(at::empty({0}, at::TensorOptions(this->gpu))), word_hash({}));
}

TYPED_TEST(DeviceKernels, AdamwGivesTheBitsOfItsReference) {
  using T = TypeParam;
  const AdamwStep step{3e-3, 0.9, 0.95, 1e-8, 0.1, 1 - 0.9, 1 - 0.95, 0.7};
  for (const int64_t n : this->sizes)
    for (const bool bf16 : {false, true}) {
      if (bf16 && sizeof(T) == 8) continue;
      at::Tensor master = values(n, this->type, 1), m = values(n, this->type, 2),
                 v = values(n, this->type, 3).abs();
      at::Tensor value = at::empty({n}, bf16 ? at::kBFloat16 : this->type);
      const at::Tensor on_gpu[] = {master.to(this->gpu), m.to(this->gpu), v.to(this->gpu),
                                   value.to(this->gpu)};
      for (const uint64_t seed : {4, 5, 6}) {
        const at::Tensor g = values(n, this->type, seed);
        adamw<T>(step, n, g.data_ptr<T>(), master.data_ptr<T>(), m.data_ptr<T>(), v.data_ptr<T>(),
                 value.data_ptr(), bf16);
        device::adamw(step, g.to(this->gpu), on_gpu[0], on_gpu[1], on_gpu[2], on_gpu[3]);
      }
      EXPECT_TRUE(same_bits(master, on_gpu[0])) << n;
      EXPECT_TRUE(same_bits(m, on_gpu[1])) << n;
      EXPECT_TRUE(same_bits(v, on_gpu[2])) << n;
      EXPECT_TRUE(same_bits(value, on_gpu[3])) << n << (bf16 ? " bf16" : "");
    }
}

}  // namespace
}  // namespace maniple

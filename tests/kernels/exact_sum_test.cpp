#include "kernels/exact_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "core/errors.h"

namespace maniple {
namespace {

using Random = std::mt19937_64;

uint64_t wrap(int64_t x) { return static_cast<uint64_t>(x); }
int64_t add(int64_t a, int64_t b) { return static_cast<int64_t>(wrap(a) + wrap(b)); }

// The meaning of section 1 in long double, whose 64 bits hold every product exactly.
template <typename T>
bool reference_addend(T g, int q, int bound_bits, int64_t* x) {
  if (!std::isfinite(g)) return false;
  const long double y = std::ldexp(static_cast<long double>(g), q);
  if (std::fabs(y) >= std::ldexp(1.0L, bound_bits)) return false;
  *x = std::llrint(y);
  return true;
}

template <typename T>
std::vector<T> special_values(int q, int bound_bits) {
  using Limits = std::numeric_limits<T>;
  std::vector<T> values = {T(0),
                           T(1),
                           T(0.1),
                           Limits::denorm_min(),
                           Limits::min(),
                           Limits::max(),
                           Limits::infinity(),
                           Limits::quiet_NaN(),
                           Limits::signaling_NaN(),
                           Limits::epsilon(),
                           T(1e-12),
                           T(3.25e-11)};
  for (int k = 0; k < 40; ++k)  // ties: k + 1/2 quanta
    values.push_back(static_cast<T>(std::ldexp(k + 0.5, -q)));
  for (int e : {bound_bits - q - 1, bound_bits - q, bound_bits - q + 1, 62 - q, 63 - q, 64 - q}) {
    const T power = static_cast<T>(std::ldexp(1.0, e));
    for (T value : {std::nextafter(power, T(0)), power, std::nextafter(power, Limits::infinity())})
      values.push_back(value);
  }
  const size_t n = values.size();
  for (size_t i = 0; i < n; ++i) values.push_back(-values[i]);
  return values;
}

template <typename T>
void check_fold_of_special_values() {
  for (int q : {36, 40, 44, 48})
    for (int bound_bits : {62, 58, 49, 40})
      for (T g : special_values<T>(q, bound_bits)) {
        int64_t expected = 0;
        const bool legal = reference_addend(g, q, bound_bits, &expected);
        // Alone and at every place of a vector and its tail.
        for (size_t size : {1, 8, 19})
          for (size_t place = 0; place < size; ++place) {
            std::vector<T> block(size, static_cast<T>(std::ldexp(1.0, -q)));
            std::vector<int64_t> acc(size, -5);
            block[place] = g;
            ASSERT_EQ(exact_fold(block, q, bound_bits, acc), legal)
                << g << " q " << q << " bound " << bound_bits;
            if (legal) {
              ASSERT_EQ(acc[place], expected - 5) << g << " q " << q;
            }
            ASSERT_EQ(exact_round(block, q, bound_bits, acc), legal) << g << " q " << q;
            if (legal) {
              ASSERT_EQ(acc[place], expected) << g << " q " << q;
            }
          }
      }
}

TEST(ExactSum, FoldOfFloatsRoundsHalfToEvenAndRefusesWhatIsBeyondTheBound) {
  check_fold_of_special_values<float>();
}
TEST(ExactSum, FoldOfDoublesRoundsHalfToEvenAndRefusesWhatIsBeyondTheBound) {
  check_fold_of_special_values<double>();
}

template <typename T>
void check_fold_of_random_bits() {
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    T g;
    if constexpr (sizeof(T) == 4) {
      const auto bits = static_cast<uint32_t>(random());
      std::memcpy(&g, &bits, 4);
    } else {
      // Exponents around the interesting range: a random 64-bit pattern is almost always beyond it.
      g = std::ldexp(static_cast<double>(static_cast<int64_t>(random())),
                     -63 - static_cast<int>(random() % 100) + 20);
    }
    const int q = 36 + static_cast<int>(random() % 13),
              bound = 50 + static_cast<int>(random() % 13);
    int64_t expected = 0, acc = static_cast<int64_t>(random());
    const int64_t start = acc;
    const bool legal = reference_addend(g, q, bound, &expected);
    ASSERT_EQ(exact_fold(std::span<const T>(&g, 1), q, bound, std::span(&acc, 1)), legal) << g;
    if (legal) {
      ASSERT_EQ(acc, add(start, expected)) << g;
    }
  }
}

TEST(ExactSum, FoldOfRandomFloatsEqualsTheReference) { check_fold_of_random_bits<float>(); }
TEST(ExactSum, FoldOfRandomDoublesEqualsTheReference) { check_fold_of_random_bits<double>(); }

TEST(ExactSum, AnyOrderAndGroupingGivesEqualSums) {
  Random random(2);
  const size_t n = 1000;
  const int num_addends = 24, q = 44, bound = exact_bound_bits(num_addends);
  std::vector<std::vector<float>> addends(num_addends, std::vector<float>(n));
  for (auto& addend : addends)
    for (float& g : addend)
      g = static_cast<float>(std::normal_distribution<>()(random)) *
          std::ldexp(1.0f, static_cast<int>(random() % 40) - 35);
  std::vector<int64_t> expected(n);
  for (const auto& addend : addends) ASSERT_TRUE(exact_fold(addend, q, bound, expected));
  for (int trial = 0; trial < 20; ++trial) {
    std::shuffle(addends.begin(), addends.end(), random);
    const size_t num_slices = 1 + random() % 8;
    std::vector<std::vector<int64_t>> slices(num_slices, std::vector<int64_t>(n));
    for (const auto& addend : addends) exact_fold(addend, q, bound, slices[random() % num_slices]);
    std::vector<int64_t> sum(n);
    std::vector<uint8_t> wire(static_cast<size_t>(exact_packed_bound(n)));
    for (const auto& slice : slices) {
      const int64_t bytes = exact_pack(slice, wire);
      ASSERT_EQ(exact_unpack_add(std::span(wire).first(static_cast<size_t>(bytes)), sum), bytes);
    }
    ASSERT_EQ(sum, expected);
  }
}

TEST(ExactSum, SumsAtTheBoundDoNotOverflow) {
  for (int num_addends : {1, 2, 3, 8, 9, 64, 1000}) {
    const int q = 48, bound = exact_bound_bits(num_addends);
    const float g = std::nextafter(std::ldexp(1.0f, bound - q), 0.0f);
    for (float sign : {1.0f, -1.0f}) {
      int64_t acc = 0;
      __int128 wide = 0;
      for (int i = 0; i < num_addends; ++i) {
        const float value = sign * g;
        ASSERT_TRUE(exact_fold(std::span(&value, 1), q, bound, std::span(&acc, 1)));
        wide += std::llrint(std::ldexp(static_cast<double>(value), q));
      }
      EXPECT_EQ(wide, acc);
      EXPECT_LE(std::abs(acc), int64_t{1} << 62);
    }
  }
}

TEST(ExactSum, QAndBoundFollowTheirFormulas) {
  EXPECT_EQ(exact_q(1, false), 36);
  EXPECT_EQ(exact_q(4 << 20, false), 40);
  EXPECT_EQ(exact_q(1'000'000'000, false), 44);
  EXPECT_EQ(exact_q(int64_t{1} << 60, false), 48);
  EXPECT_EQ(exact_q(1000, true), 48);
  for (int e = 14; e < 40; ++e)
    for (double f : {1.01, 1.5, 1.99}) {  // away from the ties
      const auto n = static_cast<int64_t>(f * std::ldexp(1.0, e));
      const auto q = 40 + std::lround(0.5 * std::log2(static_cast<double>(n) / 0x1p22));
      EXPECT_EQ(exact_q(n, false), std::clamp<int64_t>(q, 36, 48)) << n;
    }
  const std::pair<int64_t, int> bounds[] = {{1, 62}, {2, 61}, {3, 60},
                                            {4, 60}, {5, 59}, {1024, 52}};
  for (const auto& [addends, bound] : bounds) EXPECT_EQ(exact_bound_bits(addends), bound);
}

TEST(ExactSum, DecodeRoundsToTheOutputTypeLast) {
  Random random(3);
  std::vector<int64_t> acc = {0,
                              1,
                              -1,
                              INT64_MAX,
                              INT64_MIN,
                              (int64_t{1} << 53) + 1,
                              (int64_t{1} << 24) + 1,
                              (int64_t{3} << 24) + 3};
  while (acc.size() < 1003) acc.push_back(static_cast<int64_t>(random()) >> (random() % 64));
  for (double factor : {1.0, 1.0 / 3, 1e-5, 0x1p-90}) {
    std::vector<float> floats(acc.size());
    std::vector<double> doubles(acc.size());
    exact_decode(acc, 44, factor, floats);
    exact_decode(acc, 44, factor, doubles);
    for (size_t i = 0; i < acc.size(); ++i) {
      const double expected = std::ldexp(static_cast<double>(acc[i]), -44) * factor;
      ASSERT_EQ(doubles[i], expected);
      ASSERT_EQ(floats[i], static_cast<float>(expected));
    }
  }
  // 2^24 + 1 is a tie in fp32; one multiplication in fp32 first would round twice.
  float out;
  exact_decode(std::span<const int64_t>(&acc[6], 1), 0, 1.0, std::span(&out, 1));
  EXPECT_EQ(out, 0x1p24f);
}

TEST(ExactSum, ChecksumIsLinearAndSeesChanges) {
  Random random(4);
  const size_t n = 1234;
  std::vector<int64_t> a(n), b(n), sum(n);
  for (size_t i = 0; i < n; ++i) {
    a[i] = static_cast<int64_t>(random());
    b[i] = static_cast<int64_t>(random());
    sum[i] = add(a[i], b[i]);
  }
  ExactChecksum c = exact_checksum(a, 77);
  uint64_t c1 = 0, c2 = 0;
  for (size_t i = 0; i < n; ++i) {
    const int64_t w = static_cast<int32_t>(exact_mix32(static_cast<uint32_t>(i) ^ 77u));
    c1 += wrap(a[i]);
    c2 += wrap(w) * wrap(a[i]);
  }
  EXPECT_EQ(c, (ExactChecksum{c1, c2}));
  EXPECT_FALSE(c == exact_checksum(a, 78));
  c += exact_checksum(b, 77);
  EXPECT_EQ(c, exact_checksum(sum, 77));
  EXPECT_EQ(exact_checksum(std::span<const int64_t>(), 1), ExactChecksum{});
  const std::span<const int64_t> whole(a);
  ExactChecksum parts = exact_checksum(whole.first(300), 77);
  parts += exact_checksum(whole.subspan(300), 77, 300);
  EXPECT_EQ(parts, exact_checksum(a, 77));
  for (int trial = 0; trial < 300; ++trial) {
    auto wrong = a;
    const size_t i = random() % n, j = (i + 1 + random() % (n - 1)) % n;
    const int64_t change = static_cast<int64_t>(random() >> (32 + random() % 31)) + 1;
    wrong[i] = add(wrong[i], change);
    ASSERT_FALSE(exact_checksum(wrong, 77) == exact_checksum(a, 77));
    wrong[j] = add(wrong[j], -change);  // c1 is right again
    ASSERT_FALSE(exact_checksum(wrong, 77) == exact_checksum(a, 77));
  }
  auto pattern = a;  // + - - +, which weights linear in the index miss
  for (int k : {0, 3}) pattern[100 + k] = add(pattern[100 + k], 9);
  for (int k : {1, 2}) pattern[100 + k] = add(pattern[100 + k], -9);
  EXPECT_FALSE(exact_checksum(pattern, 77) == exact_checksum(a, 77));
}

// --- wire encoding -----------------------------------------------------------------------------

int width_needed(int64_t x) {
  if (x == 0) return 0;
  for (int width : {1, 2, 3, 4})
    if (x >= -(int64_t{1} << (8 * width - 1)) && x < int64_t{1} << (8 * width - 1)) return width;
  return 8;
}

std::vector<int64_t> random_groups(Random& random, size_t n) {
  std::vector<int64_t> block(n);
  for (size_t begin = 0; begin < n; begin += 128) {
    const auto shift = random() % 66;
    for (size_t i = begin; i < std::min(n, begin + 128); ++i)
      block[i] = shift > 63 ? 0 : static_cast<int64_t>(random()) >> shift;
  }
  return block;
}

TEST(ExactSum, PackedEqualsDenseOverRandomGroups) {
  Random random(5);
  for (int trial = 0; trial < 400; ++trial) {
    const size_t n = trial < 40 ? static_cast<size_t>(trial + 1) : 1 + random() % 2000;
    const std::vector<int64_t> block = random_groups(random, n), before = random_groups(random, n);
    std::vector<uint8_t> wire(static_cast<size_t>(exact_packed_bound(static_cast<int64_t>(n))));
    const int64_t bytes = exact_pack(block, wire);
    int64_t expected_bytes = 0;
    for (size_t begin = 0; begin < n; begin += 128) {
      const size_t end = std::min(n, begin + 128);
      int width = 0;
      for (size_t i = begin; i < end; ++i) width = std::max(width, width_needed(block[i]));
      expected_bytes += 1 + width * static_cast<int64_t>(end - begin);
    }
    ASSERT_EQ(bytes, expected_bytes);
    // An exact copy, so that the address sanitizer sees a read beyond the end.
    std::vector<uint8_t> exact(wire.begin(), wire.begin() + bytes);
    std::vector<int64_t> acc = before;
    ASSERT_EQ(exact_unpack_add(exact, acc), bytes);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(acc[i], add(before[i], block[i]));
    exact.resize(exact.size() + 7, 8);  // what follows is left alone
    ASSERT_EQ(exact_unpack_add(exact, acc), bytes);
    exact.resize(random() % static_cast<size_t>(bytes));
    ASSERT_EQ(exact_unpack_add(exact, acc), 0);
  }
}

TEST(ExactSum, EveryLimitOfAWidthIsKept) {
  for (int bits : {7, 8, 15, 16, 23, 24, 31, 32, 62})
    for (int64_t delta : {-2, -1, 0, 1})
      for (int64_t sign : {1, -1})
        for (int64_t n : {1, 5, 128, 130}) {
          std::vector<int64_t> block(static_cast<size_t>(n)), acc(block.size());
          block[block.size() / 2] = sign * ((int64_t{1} << bits) + delta);
          std::vector<uint8_t> wire(static_cast<size_t>(exact_packed_bound(n)));
          const int64_t bytes = exact_pack(block, wire);
          wire.resize(static_cast<size_t>(bytes));
          ASSERT_EQ(exact_unpack_add(wire, acc), bytes);
          ASSERT_EQ(acc, block);
        }
}

TEST(ExactSum, CorruptEncodingsAreRefused) {
  std::vector<int64_t> block(300, 0), acc(300);
  for (size_t i = 0; i < 128; ++i) block[i] = 70000;  // 3 bytes
  for (size_t i = 256; i < 300; ++i) block[i] = 5;    // 1 byte
  std::vector<uint8_t> good(static_cast<size_t>(exact_packed_bound(300)));
  good.resize(static_cast<size_t>(exact_pack(block, good)));
  ASSERT_EQ(good.size(), 3u + 3 * 128 + 44);
  ASSERT_EQ(exact_unpack_add(good, acc), static_cast<int64_t>(good.size()));
  const auto refused = [&](std::vector<uint8_t> wire) { return exact_unpack_add(wire, acc) == 0; };
  for (int width : {5, 6, 7, 9, 16, 127, 128, 255}) {
    auto wrong = good;
    wrong[0] = static_cast<uint8_t>(width);
    EXPECT_TRUE(refused(wrong)) << width;
  }
  for (int width : {0, 1, 2, 4, 8}) {  // legal, but not this group's
    auto wrong = good;
    wrong[0] = static_cast<uint8_t>(width);
    const int64_t read = exact_unpack_add(wrong, acc);
    EXPECT_NE(read, static_cast<int64_t>(good.size())) << width;
  }
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_TRUE(refused({good.begin(), good.begin() + static_cast<int64_t>(size)}));
  // Wider than needed: a second encoding of the same sums.
  EXPECT_EQ(exact_unpack_add(std::vector<uint8_t>{1, 0}, std::span(acc).first(1)), 0);
  EXPECT_EQ(exact_unpack_add(std::vector<uint8_t>{2, 5, 0}, std::span(acc).first(1)), 0);
  EXPECT_EQ(exact_unpack_add(std::vector<uint8_t>{3, 255, 255, 255}, std::span(acc).first(1)), 0);
  EXPECT_EQ(exact_unpack_add(std::vector<uint8_t>{1, 255}, std::span(acc).first(1)), 2);
  std::vector<uint8_t> wire(7);
  EXPECT_THROW(exact_pack(std::span<const int64_t>(block).first(1), wire), InternalError);
}

TEST(ExactSum, RandomBytesNeverReadBeyondTheirEnd) {
  Random random(6);
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<uint8_t> wire(random() % 300);
    for (uint8_t& byte : wire) byte = static_cast<uint8_t>(random());
    if (!wire.empty()) wire[0] %= 9;
    std::vector<int64_t> acc(1 + random() % 200);
    ASSERT_LE(exact_unpack_add(wire, acc), static_cast<int64_t>(wire.size()));
  }
}

// --- norms -------------------------------------------------------------------------------------

TEST(ExactSum, FixedPointRoundsToMultiplesOfTwoToTheMinus64) {
  EXPECT_TRUE(to_fixed(0) == 0);
  EXPECT_TRUE(to_fixed(1) == FixedPoint128{1} << 64);
  EXPECT_TRUE(to_fixed(0x1p-64) == 1);
  EXPECT_TRUE(to_fixed(0x1p-65) == 0);  // ties to even
  EXPECT_TRUE(to_fixed(0x1.8p-64) == 2);
  EXPECT_TRUE(to_fixed(0x1.4p-63) == 2);
  EXPECT_TRUE(to_fixed(std::numeric_limits<double>::denorm_min()) == 0);
  EXPECT_TRUE(to_fixed(std::nextafter(0x1p63, 0)) ==
              (FixedPoint128{1} << 127) - (FixedPoint128{1} << 74));
  for (double wrong : {-1.0, 0x1p63, HUGE_VAL, std::nan("")})
    EXPECT_THROW(to_fixed(wrong), InternalError) << wrong;
  for (double exact : {0.0, 1.0, 0.1, 12345.678, 0x1p-64, 1e18})
    EXPECT_EQ(from_fixed(to_fixed(exact)), exact);
  // Sums have no order.
  Random random(7);
  std::vector<double> parts(1000);
  for (double& part : parts)
    part = std::ldexp(std::uniform_real_distribution<>()(random),
                      static_cast<int>(random() % 60) - 40);
  const auto total = [&] {
    FixedPoint128 sum = 0;
    for (double part : parts) sum += to_fixed(part);
    return from_fixed(sum);
  };
  const double expected = total();
  std::shuffle(parts.begin(), parts.end(), random);
  EXPECT_EQ(total(), expected);
}

template <typename T>
void check_sum_of_squares() {
  Random random(8);
  for (size_t n : {0, 1, 7, 15, 16, 17, 31, 32, 33, 1000, 4099}) {
    std::vector<T> block(n + 1);
    for (T& x : block)
      x = static_cast<T>(std::normal_distribution<>()(random) *
                         std::exp(static_cast<double>(random() % 40) - 20));
    double lane[16] = {};
    for (size_t i = 0; i < n; ++i) {  // from an odd address
      const volatile double square =
          static_cast<double>(block[i + 1]) * static_cast<double>(block[i + 1]);
      lane[i % 16] += square;
    }
    for (int half = 8; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    EXPECT_EQ(block_sum_of_squares(std::span<const T>(block).subspan(1)), lane[0]) << n;
  }
}

TEST(ExactSum, SumOfSquaresHasTheOrderThatTheHeaderStates) {
  check_sum_of_squares<float>();
  check_sum_of_squares<double>();
}

}  // namespace
}  // namespace maniple

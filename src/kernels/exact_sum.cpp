#include "kernels/exact_sum.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/errors.h"
#include "kernels/isa.h"

namespace maniple {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire encoding is little-endian");

constexpr int64_t kGroup = 128;  // elements per width byte

// The copies for the instruction sets give equal results: their operations are on integers, round
// once, or add in an order that the source fixes.

// --- Fold and decode ---------------------------------------------------------------------------

template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The bits of 2^exponent: of two non-negative floats the larger has the larger bits, and infinity
// and NaN have larger bits than every finite value.
template <typename T>
constexpr BitsOf<T> bits_of_power(int exponent) {
  if constexpr (sizeof(T) == 4)
    return (exponent + 127) << 23;
  else
    return static_cast<int64_t>(exponent + 1023) << 52;
}

// Elements [begin, n); true while all are legal. The product with a power of two is exact; only the
// conversion rounds, half to even (the mode in force). What an illegal element becomes is
// unspecified, but no instruction traps.
template <typename T>
struct FoldBody {
  template <bool kFirst>
  MANIPLE_INLINE static bool run(const T* g, double scale, BitsOf<T> limit, uint64_t* acc,
                                 int64_t begin, int64_t n) {
    constexpr BitsOf<T> kMagnitude = ~(BitsOf<T>{1} << (8 * sizeof(T) - 1));
    BitsOf<T> illegal = 0;
    for (int64_t i = begin; i < n; ++i) {
      BitsOf<T> bits;
      std::memcpy(&bits, g + i, sizeof bits);
      illegal |= (bits & kMagnitude) >= limit;
      const uint64_t before = kFirst ? 0 : acc[i];
      acc[i] = before + static_cast<uint64_t>(std::llrint(static_cast<double>(g[i]) * scale));
    }
    return illegal == 0;
  }
};

#if MANIPLE_X86
// The compiler does not vectorise llrint. (The maskz forms: GCC 12 warns inside the plain ones.)
constexpr __mmask8 kAll = 0xff;

template <bool kFirst>
MANIPLE_AVX512 bool fold_avx512(const float* g, double scale, int32_t limit, uint64_t* acc,
                                int64_t n) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), limits = _mm256_set1_epi32(limit);
  const __m512d scales = _mm512_set1_pd(scale);
  unsigned illegal = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(g + i);
    illegal |= _mm256_cmpge_epi32_mask(_mm256_and_si256(_mm256_castps_si256(v), magnitude), limits);
    const __m512i x =
        _mm512_maskz_cvtpd_epi64(kAll, _mm512_mul_pd(_mm512_maskz_cvtps_pd(kAll, v), scales));
    _mm512_storeu_si512(acc + i,
                        kFirst ? x : _mm512_add_epi64(_mm512_loadu_si512(acc + i), x));
  }
  return FoldBody<float>::run<kFirst>(g, scale, limit, acc, i, n) && illegal == 0;
}

template <bool kFirst>
MANIPLE_AVX512 bool fold_avx512(const double* g, double scale, int64_t limit, uint64_t* acc,
                                int64_t n) {
  const __m512i magnitude = _mm512_set1_epi64(INT64_MAX), limits = _mm512_set1_epi64(limit);
  const __m512d scales = _mm512_set1_pd(scale);
  unsigned illegal = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m512d v = _mm512_loadu_pd(g + i);
    illegal |= _mm512_cmpge_epi64_mask(_mm512_and_si512(_mm512_castpd_si512(v), magnitude), limits);
    const __m512i x = _mm512_maskz_cvtpd_epi64(kAll, _mm512_mul_pd(v, scales));
    _mm512_storeu_si512(acc + i,
                        kFirst ? x : _mm512_add_epi64(_mm512_loadu_si512(acc + i), x));
  }
  return FoldBody<double>::run<kFirst>(g, scale, limit, acc, i, n) && illegal == 0;
}
#endif

template <bool kFirst, typename T>
bool fold(std::span<const T> g, int q, int bound_bits, std::span<int64_t> acc) {
  MANIPLE_INVARIANT(g.size() == acc.size(), "{} addends, {} sums", g.size(), acc.size());
  MANIPLE_INVARIANT(q >= 0 && q <= 62 && bound_bits >= 0 && bound_bits <= 62,
                    "q = {} and bound_bits = {} must be in 0..62", q, bound_bits);
  const double scale = std::ldexp(1.0, q);
  const BitsOf<T> limit = bits_of_power<T>(bound_bits - q);
  auto* sums = reinterpret_cast<uint64_t*>(acc.data());
  const auto n = static_cast<int64_t>(g.size());
#if MANIPLE_X86
  if (isa() == Isa::kAvx512) return fold_avx512<kFirst>(g.data(), scale, limit, sums, n);
#endif
  return FoldBody<T>::template run<kFirst>(g.data(), scale, limit, sums, 0, n);
}

template <typename T>
struct DecodeBody {
  MANIPLE_INLINE static int run(const int64_t* acc, double unit, double factor, T* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      out[i] = static_cast<T>(static_cast<double>(acc[i]) * unit * factor);
    return 0;
  }
};

template <typename T>
void decode(std::span<const int64_t> acc, int q, double factor, std::span<T> out) {
  MANIPLE_INVARIANT(acc.size() == out.size(), "{} sums, {} results", acc.size(), out.size());
  dispatch<DecodeBody<T>>(acc.data(), std::ldexp(1.0, -q), factor, out.data(),
                          static_cast<int64_t>(acc.size()));
}

// --- Checksum ----------------------------------------------------------------------------------

struct ChecksumBody {
  MANIPLE_INLINE static ExactChecksum run(const int64_t* x, int64_t n, uint32_t key, uint32_t first) {
    uint64_t c1 = 0, c2 = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<uint64_t>(x[i]);
      const auto w = static_cast<int32_t>(exact_mix32((static_cast<uint32_t>(i) + first) ^ key));
      c1 += value;
      c2 += static_cast<uint64_t>(static_cast<int64_t>(w)) * value;
    }
    return {c1, c2};
  }
};

// --- Wire encoding -----------------------------------------------------------------------------

// The least legal width of a group, from the OR of its elements and the OR of their magnitudes'
// bits (x XOR its sign).
MANIPLE_INLINE int width_of(uint64_t any, uint64_t bits) {
  if (any == 0) return 0;
  if (bits < uint64_t{1} << 7) return 1;
  if (bits < uint64_t{1} << 15) return 2;
  if (bits < uint64_t{1} << 23) return 3;
  if (bits < uint64_t{1} << 31) return 4;
  return 8;
}

template <typename Narrow>
MANIPLE_INLINE void narrow(const int64_t* x, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto value = static_cast<Narrow>(x[i]);
    std::memcpy(out + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
  }
}

template <typename Narrow>
MANIPLE_INLINE void widen(const uint8_t* in, int64_t* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    Narrow value;
    std::memcpy(&value, in + i * static_cast<int64_t>(sizeof value), sizeof value);
    x[i] = value;
  }
}

// Three bytes are moved as four while a fourth is there, so all but the last element.
MANIPLE_INLINE void narrow3(const int64_t* x, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i + 1 < n; ++i) {
    const auto value = static_cast<int32_t>(x[i]);
    std::memcpy(out + 3 * i, &value, 4);
  }
  std::memcpy(out + 3 * (n - 1), x + n - 1, 3);
}

MANIPLE_INLINE void widen3(const uint8_t* in, int64_t* x, int64_t n) {
  uint32_t value = 0;
  for (int64_t i = 0; i + 1 < n; ++i) {
    std::memcpy(&value, in + 3 * i, 4);
    x[i] = static_cast<int32_t>(value << 8) >> 8;
  }
  std::memcpy(&value, in + 3 * (n - 1), 3);
  x[n - 1] = static_cast<int32_t>(value << 8) >> 8;
}

struct PackBody {
  MANIPLE_INLINE static int64_t run(const int64_t* x, int64_t n, uint8_t* out) {
    uint8_t* to = out;
    for (int64_t begin = 0; begin < n; begin += kGroup, x += kGroup) {
      const int64_t count = std::min(kGroup, n - begin);
      uint64_t any = 0, bits = 0;
      for (int64_t i = 0; i < count; ++i) {
        any |= static_cast<uint64_t>(x[i]);
        bits |= static_cast<uint64_t>(x[i] ^ (x[i] >> 63));
      }
      const int width = width_of(any, bits);
      *to++ = static_cast<uint8_t>(width);
      switch (width) {
        case 1:
          narrow<int8_t>(x, to, count);
          break;
        case 2:
          narrow<int16_t>(x, to, count);
          break;
        case 3:
          narrow3(x, to, count);
          break;
        case 4:
          narrow<int32_t>(x, to, count);
          break;
        case 8:
          narrow<int64_t>(x, to, count);
          break;
        default:
          break;
      }
      to += width * count;
    }
    return to - out;
  }
};

struct UnpackBody {
  MANIPLE_INLINE static int64_t run(const uint8_t* in, int64_t size, uint64_t* acc, int64_t n) {
    const uint8_t* from = in;
    const uint8_t* const end = in + size;
    int64_t x[kGroup];
    for (int64_t begin = 0; begin < n; begin += kGroup, acc += kGroup) {
      const int64_t count = std::min(kGroup, n - begin);
      if (from == end) return 0;
      const int width = *from++;
      if (width * count > end - from) return 0;
      switch (width) {
        case 0:
          continue;
        case 1:
          widen<int8_t>(from, x, count);
          break;
        case 2:
          widen<int16_t>(from, x, count);
          break;
        case 3:
          widen3(from, x, count);
          break;
        case 4:
          widen<int32_t>(from, x, count);
          break;
        case 8:
          widen<int64_t>(from, x, count);
          break;
        default:
          return 0;
      }
      uint64_t any = 0, bits = 0;
      for (int64_t i = 0; i < count; ++i) {
        any |= static_cast<uint64_t>(x[i]);
        bits |= static_cast<uint64_t>(x[i] ^ (x[i] >> 63));
        acc[i] += static_cast<uint64_t>(x[i]);
      }
      if (width_of(any, bits) != width) return 0;  // every sum has one encoding
      from += width * count;
    }
    return from - in;
  }
};

// --- Sum of squares ----------------------------------------------------------------------------

// Element i is added to lane i mod 16, in order of i; then the lanes as a binary tree. The vector
// type has this meaning on every instruction set.
template <typename T>
struct SquaresBody {
  MANIPLE_INLINE static double run(const T* x, int64_t n) {
    constexpr int64_t kLanes = 16;
    typedef double Lanes __attribute__((vector_size(kLanes * 8)));
    typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T))));
    Lanes sum = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Narrow loaded;
      std::memcpy(&loaded, x + i, sizeof loaded);
      const Lanes value = __builtin_convertvector(loaded, Lanes);
      sum += value * value;
    }
    double lane[kLanes];
    std::memcpy(lane, &sum, sizeof lane);
    for (int64_t l = 0; i < n; ++i, ++l) {
      const auto value = static_cast<double>(x[i]);
      lane[l] += value * value;
    }
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }
};

}  // namespace

int exact_q(int64_t num_parameters, bool fp64) {
  MANIPLE_INVARIANT(num_parameters > 0, "{} parameters", num_parameters);
  if (fp64) return 48;
  // round(log2(n / 2^22) / 2) = floor((floor(log2 n) - 21) / 2), in integers.
  const int log2_n = std::bit_width(static_cast<uint64_t>(num_parameters)) - 1;
  return std::clamp(40 + ((log2_n - 21) >> 1), 36, 48);
}

int exact_bound_bits(int64_t num_addends) {
  MANIPLE_INVARIANT(num_addends > 0, "{} addends", num_addends);
  return 62 - std::bit_width(static_cast<uint64_t>(num_addends - 1));
}

bool exact_fold(std::span<const float> g, int q, int bound_bits, std::span<int64_t> acc) {
  return fold<false>(g, q, bound_bits, acc);
}
bool exact_fold(std::span<const double> g, int q, int bound_bits, std::span<int64_t> acc) {
  return fold<false>(g, q, bound_bits, acc);
}

bool exact_round(std::span<const float> g, int q, int bound_bits, std::span<int64_t> sums) {
  return fold<true>(g, q, bound_bits, sums);
}
bool exact_round(std::span<const double> g, int q, int bound_bits, std::span<int64_t> sums) {
  return fold<true>(g, q, bound_bits, sums);
}

void exact_decode(std::span<const int64_t> acc, int q, double factor, std::span<float> out) {
  decode(acc, q, factor, out);
}
void exact_decode(std::span<const int64_t> acc, int q, double factor, std::span<double> out) {
  decode(acc, q, factor, out);
}

ExactChecksum exact_checksum(std::span<const int64_t> part, uint32_t key, uint32_t first) {
  return dispatch<ChecksumBody>(part.data(), static_cast<int64_t>(part.size()), key, first);
}

int64_t exact_packed_bound(int64_t num_elements) {
  return (num_elements + kGroup - 1) / kGroup + 8 * num_elements;
}

int64_t exact_pack(std::span<const int64_t> block, std::span<uint8_t> out) {
  const auto n = static_cast<int64_t>(block.size());
  MANIPLE_INVARIANT(static_cast<int64_t>(out.size()) >= exact_packed_bound(n),
                    "{} bytes for {} elements", out.size(), n);
  return dispatch<PackBody>(block.data(), n, out.data());
}

int64_t exact_unpack_add(std::span<const uint8_t> in, std::span<int64_t> acc) {
  return dispatch<UnpackBody>(in.data(), static_cast<int64_t>(in.size()),
                              reinterpret_cast<uint64_t*>(acc.data()),
                              static_cast<int64_t>(acc.size()));
}

FixedPoint128 to_fixed(double sum_of_squares) {
  MANIPLE_INVARIANT(sum_of_squares >= 0 && sum_of_squares < 0x1p63, "sum of squares {}",
                    sum_of_squares);
  return static_cast<FixedPoint128>(std::nearbyint(sum_of_squares * 0x1p64));
}

double from_fixed(FixedPoint128 value) { return static_cast<double>(value) * 0x1p-64; }

double block_sum_of_squares(std::span<const float> block) {
  return dispatch<SquaresBody<float>>(block.data(), static_cast<int64_t>(block.size()));
}
double block_sum_of_squares(std::span<const double> block) {
  return dispatch<SquaresBody<double>>(block.data(), static_cast<int64_t>(block.size()));
}

}  // namespace maniple

// Exact integer sums (spec: docs/numerics.md). An addend g becomes rint(g * 2^q), an int64, round
// half to even; sums of int64 have no order. Plain functions on spans; torch-free, thread-safe,
// single-threaded (callers split blocks among threads). The floating-point environment must round
// to nearest, the default of every thread; spans of one call have equal lengths.
//
// Example, two addends of three elements, as a step does it:
//   const int q = exact_q(num_parameters, false), bound = exact_bound_bits(2);
//   std::vector<int64_t> acc(3);
//   bool finite = exact_fold(g1, q, bound, acc) && exact_fold(g2, q, bound, acc);
//   if (finite) exact_decode(acc, q, 1.0 / num_tokens, gradient);
#pragma once

#include <cstdint>
#include <span>

namespace maniple {

// q for a model of n parameters (whole, unpadded): 40 + round(log2(n / 2^22) / 2), kept in 36..48
// (ties up); 48 for fp64 runs.
int exact_q(int64_t num_parameters, bool fp64);

// An addend is legal while |g * 2^q| < 2^bound_bits; bound_bits = 62 - ceil(log2(num_addends)).
int exact_bound_bits(int64_t num_addends);

// acc[i] += rint(g[i] * 2^q), added modulo 2^64. Returns false when an addend is NaN, infinite or
// beyond the bound (its element of acc is then unspecified): the step is non-finite.
bool exact_fold(std::span<const float> g, int q, int bound_bits, std::span<int64_t> acc);
bool exact_fold(std::span<const double> g, int q, int bound_bits, std::span<int64_t> acc);
// The same for the first addend: acc[i] = rint(g[i] * 2^q).
bool exact_round(std::span<const float> g, int q, int bound_bits, std::span<int64_t> acc);
bool exact_round(std::span<const double> g, int q, int bound_bits, std::span<int64_t> acc);

// out[i] = double(acc[i]) * 2^-q * factor, computed in double, rounded to the output type last.
void exact_decode(std::span<const int64_t> acc, int q, double factor, std::span<float> out);
void exact_decode(std::span<const int64_t> acc, int q, double factor, std::span<double> out);

// A bijection of 32-bit words (lowbias32 of C. Wellons' hash-prospector).
constexpr uint32_t exact_mix32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Linear checksums of a block of int64, modulo 2^64: c1 = sum x_i, c2 = sum w_i x_i with
// w_i = sign-extended exact_mix32(i XOR key). Checksums of addends, added with +=, equal the
// checksum of their sum, and checksums of the parts of a block, each from its `first` element on, that
// of the block. A block has at most 2^32 elements.
struct ExactChecksum {
  uint64_t c1 = 0, c2 = 0;
  bool operator==(const ExactChecksum&) const = default;
  ExactChecksum& operator+=(const ExactChecksum& other) {
    c1 += other.c1;
    c2 += other.c2;
    return *this;
  }
};
ExactChecksum exact_checksum(std::span<const int64_t> part, uint32_t key, uint32_t first = 0);

// Wire encoding: per group of 128 elements one width byte (0, 1, 2, 3, 4 or 8 bytes per element,
// the least that holds every element in two's complement) and the payload, little-endian. The last
// group may be shorter. Lossless, and a block has exactly one encoding.
// pack writes into out (at least exact_packed_bound(n) bytes) and returns the bytes written;
// unpack_add adds n decoded elements to acc and returns the bytes read, or 0 if the bytes are not a
// valid encoding of exactly n elements (acc is then unspecified; n must be > 0). Bytes after the
// encoding are left alone, so encoded blocks can follow each other; whoever knows that nothing
// follows compares the result with in.size().
int64_t exact_packed_bound(int64_t num_elements);
int64_t exact_pack(std::span<const int64_t> block, std::span<uint8_t> out);
int64_t exact_unpack_add(std::span<const uint8_t> in, std::span<int64_t> acc);

// A sum of squares as 128-bit fixed point: multiples of 2^-64 (rounded half to even), added as
// integers; the total must stay below 2^64. A sum that is not in [0, 2^63) is the caller's to
// refuse (a non-finite step): to_fixed throws InternalError.
using FixedPoint128 = unsigned __int128;
FixedPoint128 to_fixed(double sum_of_squares);
double from_fixed(FixedPoint128 value);

// Sum of squares of a block in double and in fixed order, whatever the vector width: element i goes
// to lane i mod 16, then lane l takes lane l + 8, + 4, + 2, + 1.
double block_sum_of_squares(std::span<const float> block);
double block_sum_of_squares(std::span<const double> block);

}  // namespace maniple

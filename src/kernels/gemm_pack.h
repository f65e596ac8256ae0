// Layouts of the microkernel's operands. A: rows of K elements. B: panels of kPanel columns, each
// [K, kPanel] for fp32 and [K / 2, kPanel, 2] (pairs of rows interleaved) for bf16, padded with
// zeros to whole pairs and panels. S is the type in the matrix, T that of the microkernel: bf16 is
// widened to fp32 on the way for processors without a microkernel for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/bf16.h"

namespace maniple {

inline constexpr int64_t kPanel = 64;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A matrix in memory: element (i, j) at data[i * row + j * column]; one of the strides is 1.
template <typename T>
struct View {
  const T* data;
  int64_t row, column;
};

#if MANIPLE_X86
// Transposes 16 x 16 words of 32 bits.
MANIPLE_AVX512 inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

MANIPLE_AVX512 inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffff);
}

// Up to 16 numbers as the bits of fp32.
MANIPLE_AVX512 inline __m512i load_fp32(__mmask16 mask, const float* from) {
  return _mm512_maskz_loadu_epi32(mask, from);
}
MANIPLE_AVX512 inline __m512i load_fp32(__mmask16 mask, const bf16_t* from) {
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
}

// Rows k and k + 1 of 16 bf16 each as 16 words (k in the low half).
MANIPLE_AVX512 inline __m512i interleave(const uint16_t* even, const uint16_t* odd) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// 16 columns [n, n + 16) of a panel, K even for bf16.
template <typename S>
MANIPLE_AVX512 inline void pack_b16(View<S> b, int64_t K, float* out) {
  if (b.column == 1) {
    for (int64_t k = 0; k < K; ++k)
      _mm512_storeu_si512(out + k * kPanel, load_fp32(first_lanes(16), b.data + k * b.row));
    return;
  }
  for (int64_t k = 0; k < K; k += 16) {
    const int64_t n = K - k < 16 ? K - k : 16;
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = load_fp32(first_lanes(n), b.data + i * b.column + k);
    transpose16(r);
    for (int64_t i = 0; i < n; ++i) _mm512_storeu_si512(out + (k + i) * kPanel, r[i]);
  }
}
MANIPLE_AVX512 inline void pack_b16(View<bf16_t> b, int64_t K, bf16_t* out) {
  if (b.column == 1) {
    for (int64_t k = 0; k < K; k += 2)
      _mm512_storeu_si512(out + k * kPanel,
                          interleave(b.data + k * b.row, b.data + (k + 1) * b.row));
    return;
  }
  for (int64_t k = 0; k < K; k += 32) {  // a word is a pair already, perhaps an unaligned one
    const int64_t words = (K - k < 32 ? K - k : 32) / 2;
    __m512i r[16];
    for (int i = 0; i < 16; ++i)
      r[i] = _mm512_maskz_loadu_epi32(first_lanes(words), b.data + i * b.column + k);
    transpose16(r);
    for (int64_t i = 0; i < words; ++i) _mm512_storeu_si512(out + (k + 2 * i) * kPanel, r[i]);
  }
}

// 16 rows of a matrix that is stored by columns (row stride 1): K elements each, at out + i * ld.
template <typename S>
MANIPLE_AVX512 inline void pack_a16(View<S> a, int64_t K, float* out, int64_t ld) {
  for (int64_t k = 0; k < K; k += 16) {
    const int64_t n = K - k < 16 ? K - k : 16;
    __m512i r[16];
    for (int i = 0; i < 16; ++i)
      r[i] = i < n ? load_fp32(first_lanes(16), a.data + (k + i) * a.column) : _mm512_setzero_si512();
    transpose16(r);
    for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(out + i * ld + k, first_lanes(n), r[i]);
  }
}
MANIPLE_AVX512 inline void pack_a16(View<bf16_t> a, int64_t K, bf16_t* out, int64_t ld) {
  for (int64_t k = 0; k < K; k += 32) {
    const int64_t n = (K - k < 32 ? K - k : 32) / 2;
    __m512i r[16];
    for (int i = 0; i < 16; ++i)
      r[i] = i < n ? interleave(a.data + (k + 2 * i) * a.column, a.data + (k + 2 * i + 1) * a.column)
                   : _mm512_setzero_si512();
    transpose16(r);
    for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(out + i * ld + k, first_lanes(n), r[i]);
  }
}

template <typename S>
MANIPLE_AVX512 inline void widen_row(const S* from, int64_t K, float* out) {
  for (int64_t k = 0; k < K; k += 16)
    _mm512_mask_storeu_epi32(out + k, first_lanes(K - k), load_fp32(first_lanes(K - k), from + k));
}
#endif

template <typename T, typename S>
T to_type(S x) {
  if constexpr (std::is_same_v<S, T>)
    return x;
  else
    return to_float(x);
}

// Element (k, n) of a packed panel.
template <typename T>
int64_t panel_index(int64_t k, int64_t n) {
  return sizeof(T) == 4 ? k * kPanel + n : (k / 2 * kPanel + n) * 2 + k % 2;
}

// Columns [0, N), N <= kPanel, of b into a panel of padded_k rows.
template <typename S, typename T>
void pack_b(View<S> b, int64_t K, int64_t N, int64_t padded_k, T* out) {
  int64_t n = 0, k_done = 0;
  if (N < kPanel || K < padded_k) std::memset(out, 0, padded_k * kPanel * sizeof(T));
#if MANIPLE_X86
  if (isa() == Isa::kAvx512) {
    k_done = sizeof(T) == 2 ? K / 2 * 2 : K;
    // A few whole rows of the panel at a time: reading 16 columns to the end costs 4 % of a product.
    const int64_t rows = b.column == 1 ? 32 : k_done;
    for (int64_t k = 0; k < k_done; k += rows)
      for (n = 0; n + 16 <= N; n += 16)
        pack_b16(View<S>{b.data + k * b.row + n * b.column, b.row, b.column},
                 std::min(rows, k_done - k), out + panel_index<T>(k, n));
    for (int64_t k = k_done; k < K; ++k)
      for (int64_t i = 0; i < n; ++i)
        out[panel_index<T>(k, i)] = to_type<T>(b.data[k * b.row + i * b.column]);
  }
#endif
  for (int64_t k = 0; k < K; ++k)
    for (int64_t i = n; i < N; ++i)
      out[panel_index<T>(k, i)] = to_type<T>(b.data[k * b.row + i * b.column]);
}

// Rows [0, M) of a, padded with zeros to padded_m rows of padded_k elements.
template <typename S, typename T>
void pack_a(View<S> a, int64_t M, int64_t K, int64_t padded_m, int64_t padded_k, T* out) {
  int64_t m = 0;
  if (M < padded_m || K < padded_k) std::memset(out, 0, padded_m * padded_k * sizeof(T));
  if constexpr (std::is_same_v<S, T>)
    if (a.column == 1) {
      for (; m < M; ++m) std::memcpy(out + m * padded_k, a.data + m * a.row, K * sizeof(T));
      return;
    }
#if MANIPLE_X86
  if (isa() == Isa::kAvx512) {
    if constexpr (!std::is_same_v<S, T>)
      if (a.column == 1) {
        for (; m < M; ++m) widen_row(a.data + m * a.row, K, out + m * padded_k);
        return;
      }
    const int64_t even = sizeof(T) == 2 ? K / 2 * 2 : K;
    for (; m + 16 <= M; m += 16)
      pack_a16(View<S>{a.data + m * a.row, a.row, a.column}, even, out + m * padded_k, padded_k);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t k = even; k < K; ++k)
        out[i * padded_k + k] = to_type<T>(a.data[i * a.row + k * a.column]);
  }
#endif
  for (; m < M; ++m)
    for (int64_t k = 0; k < K; ++k)
      out[m * padded_k + k] = to_type<T>(a.data[m * a.row + k * a.column]);
}

}  // namespace maniple

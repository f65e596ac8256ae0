// The block product that the kernels of this folder are built on: oneDNN's, as LibTorch exports it
// (at::native::cpublas::brgemm; AVX2 and AVX-512 for fp32, AVX-512 with bf16 and AMX for bf16).
// Operands are packed as kernels/gemm_pack.h says. Only where has_microkernel(type).
#pragma once

#include <ATen/native/CPUBlas.h>

#include "kernels/gemm_pack.h"
#include "kernels/bf16.h"

namespace maniple {

bool has_microkernel(at::ScalarType type);  // decided by trying
// Whether products of this type are best made of operands in fp32: bf16 without a microkernel.
inline bool needs_fp32(at::ScalarType type) {
  return type == at::kBFloat16 && !has_microkernel(at::kBFloat16);
}

// c [M, kPanel] (rows ldc apart) = or += a [M, K] (rows lda apart) times one packed panel. A kernel is
// made for every new (M, K, lda, ldc): callers keep M to multiples of 16 and K to few values.
inline void brgemm(int64_t M, int64_t K, int64_t lda, int64_t ldc, bool add, const float* a,
                   const float* panel, float* c) {
  at::native::cpublas::brgemm(M, kPanel, K, lda, kPanel, ldc, add, a, panel, c, false);
}
inline void brgemm(int64_t M, int64_t K, int64_t lda, int64_t ldc, bool add, const bf16_t* a,
                   const bf16_t* panel, float* c) {
  at::native::cpublas::brgemm(M, kPanel, K, lda, kPanel, ldc, add,
                              reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(panel), c, true);
}

// Ends a series of calls of one thread (AMX: gives the tiles back).
template <typename T>
void release_microkernel() {
  at::native::cpublas::brgemm_release(sizeof(T) == 2);
}

}  // namespace maniple

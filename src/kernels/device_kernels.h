// The optimizer's arithmetic on a GPU. Every function here gives the bits of its namesake in
// exact_sum.h, adamw.h or word_hash.h, which is its reference (tests/gpu/device_kernels_test.cpp
// compares them).
// Tensors are contiguous, flat and on one GPU; work is enqueued on the current stream of the calling
// thread. A build without CUDA has these functions too; there they throw InternalError, and nothing
// calls them, because no tensor is on a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/adamw.h"

namespace maniple::device {

// sums (int64) += rint(g * 2^q), g fp32 or fp64. Sets illegal[0] (int32) to 1 when an addend is NaN,
// infinite or beyond the bound, else leaves it.
void exact_fold(const at::Tensor& g, int q, int bound_bits, at::Tensor& sums, at::Tensor& illegal);

// out (fp32 or fp64) = double(sums) * 2^-q * factor.
void exact_decode(const at::Tensor& sums, int q, double factor, at::Tensor& out);

// block_sum_of_squares of every block of block_elements elements of x (fp32 or fp64; whole blocks),
// as fp64 [blocks].
at::Tensor block_sums_of_squares(const at::Tensor& x, int64_t block_elements);

// word_hash of all bytes of x, any type. Waits for the GPU.
uint64_t hash(const at::Tensor& x);

// One step over gradient, master, m and v (all fp32 or all fp64) and value (their type or bf16).
void adamw(const AdamwStep& step, const at::Tensor& gradient, at::Tensor master, at::Tensor m,
           at::Tensor v, at::Tensor value);

}  // namespace maniple::device

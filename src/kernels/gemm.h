// Dense matrix products on CPU: blocking, packing and threads of our own around the oneDNN
// microkernel that LibTorch exports (at::native::cpublas::brgemm: AVX2, AVX-512, AMX). Beside ATen's
// mm it adds into fp32 gradients directly, runs many products (the experts) in one parallel
// region, and does not use MKL's fp32 path, which is slow on processors of other makers.
// The bits of a product depend on its shapes and operands alone, not on threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace maniple {

// c = a b, or c += a b. a [M, K], b [K, N]: one type (fp32 or bf16), one of the two strides 1.
// c [M, N]: fp32 or the type of a; last stride 1. Sums are fp32, in order of k. K = 0 or M = 0 is
// legal. Other types and devices: the ATen reference.
struct Product {
  at::Tensor a, b, c;
  bool accumulate = false;
};
void multiply(const std::vector<Product>& products);

inline void multiply(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  multiply({{a, b, c, false}});
}
inline void multiply_add(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  multiply({{a, b, c, true}});
}

}  // namespace maniple

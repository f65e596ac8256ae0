// Tensors for the tests over the stub of NCCL.
#pragma once

#include <ATen/ATen.h>
#include <nccl.h>

namespace maniple {

// A tensor of a "GPU": the memory of `host`, which it keeps.
inline at::Tensor on_gpu(const at::Tensor& host) {
  const at::Device gpu(at::kCUDA, 0);
  return at::for_blob(host.data_ptr(), host.sizes())
      .options(host.options().device(gpu))
      .target_device(gpu)
      .deleter([host](void*) {})
      .make_tensor();
}

inline at::Tensor numbers(int64_t n, int64_t rank) {
  return at::arange(n, at::TensorOptions(at::kLong)) * 0x9e3779b97f4a7c1 + rank * 77;
}
inline at::Tensor empty(int64_t n) { return at::full({n}, -1, at::TensorOptions(at::kLong)); }

}  // namespace maniple

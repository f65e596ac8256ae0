// Compiled with -fmad=false: a multiply and an add stay two roundings, as on the CPU. Division and
// square root are IEEE's by nvcc's default, denormals are kept.
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>

#include "core/errors.h"
#include "kernels/device_kernels.h"
#include "kernels/word_hash.h"

namespace maniple::device {
namespace {

constexpr int kThreads = 256;

int num_blocks_for(int64_t n) {
  return static_cast<int>(std::min<int64_t>((n + kThreads - 1) / kThreads, 1 << 16));
}

__device__ int64_t first_element() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ int64_t stride() { return int64_t{gridDim.x} * blockDim.x; }

// |g| < limit is false for NaN and infinity.
template <typename T>
__global__ void fold_kernel(const T* g, int64_t n, double scale, double limit, int64_t* sums,
                            int32_t* illegal) {
  bool legal = true;
  for (int64_t i = first_element(); i < n; i += stride()) {
    const double value = g[i];
    legal = legal && fabs(value) < limit;
    sums[i] = static_cast<int64_t>(static_cast<uint64_t>(sums[i]) +
                                   static_cast<uint64_t>(__double2ll_rn(value * scale)));
  }
  if (!legal) *illegal = 1;
}

template <typename T>
__global__ void decode_kernel(const int64_t* sums, int64_t n, double unit, double factor, T* out) {
  for (int64_t i = first_element(); i < n; i += stride())
    out[i] = static_cast<T>(static_cast<double>(sums[i]) * unit * factor);
}

constexpr int kLanes = 16;

// A thread block of 16 threads takes one block of elements, a thread one lane.
template <typename T>
__global__ void squares_kernel(const T* x, int64_t block_elements, double* out) {
  const T* block = x + blockIdx.x * block_elements;
  const int lane = threadIdx.x;
  double sum = 0;
#pragma unroll 32
  for (int64_t i = lane; i < block_elements; i += kLanes) {
    const double value = block[i];
    sum += value * value;
  }
  __shared__ double lanes[kLanes];
  lanes[lane] = sum;
  for (int half = kLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane] += lanes[lane + half];
  }
  if (lane == 0) out[blockIdx.x] = lanes[0];
}

// A thread block adds the terms of its words.
__global__ void hash_kernel(const uint8_t* bytes, int64_t n, int64_t* out) {
  uint64_t sum = 0;
  for (int64_t i = first_element(); i < (n + 7) / 8; i += stride())
    sum += word_hash_term(word_of(bytes, n, i), static_cast<uint64_t>(i));
  __shared__ uint64_t sums[kThreads];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<int64_t>(sums[0]);
}

__device__ uint16_t to_bf16(float x) {  // round to nearest even; NaN stays NaN
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

__device__ void store(float* value, int64_t i, float x) { value[i] = x; }
__device__ void store(double* value, int64_t i, double x) { value[i] = x; }
__device__ void store(uint16_t* value, int64_t i, float x) { value[i] = to_bf16(x); }

template <typename T>
struct AdamwScalars {  // rounded once on the host, as in adamw.cpp
  T keep, b1, b2, a1, a2, rate, root, eps, factor;
};

template <typename T, typename Value>
__global__ void adamw_kernel(AdamwScalars<T> s, int64_t n, const T* gradient, T* master, T* m, T* v,
                             Value* value) {
  for (int64_t i = first_element(); i < n; i += stride()) {
    const T g = gradient[i] * s.factor;
    m[i] = s.b1 * m[i] + s.a1 * g;
    v[i] = s.b2 * v[i] + s.a2 * (g * g);
    master[i] = master[i] * s.keep - s.rate * m[i] / (sqrt(v[i]) * s.root + s.eps);
    store(value, i, master[i]);
  }
}

// Runs body(typed zero) for fp32 or fp64.
template <typename Body>
void with_type(const at::Tensor& t, const Body& body) {
  if (t.scalar_type() == at::kDouble)
    body(double{});
  else
    body(float{});
}

void check(const at::Tensor& t, int64_t n) {
  MANIPLE_INVARIANT(t.is_cuda() && t.is_contiguous() && t.numel() == n, "{} of {} elements",
                    t.device().str(), t.numel());
}

}  // namespace

void exact_fold(const at::Tensor& g, int q, int bound_bits, at::Tensor& sums, at::Tensor& illegal) {
  const int64_t n = g.numel();
  check(g, n);
  check(sums, n);
  if (n == 0) return;
  with_type(g, [&](auto zero) {
    using T = decltype(zero);
    fold_kernel<T><<<num_blocks_for(n), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        g.const_data_ptr<T>(), n, std::ldexp(1.0, q), std::ldexp(1.0, bound_bits - q),
        sums.data_ptr<int64_t>(), illegal.data_ptr<int32_t>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void exact_decode(const at::Tensor& sums, int q, double factor, at::Tensor& out) {
  const int64_t n = sums.numel();
  check(sums, n);
  check(out, n);
  if (n == 0) return;
  with_type(out, [&](auto zero) {
    using T = decltype(zero);
    decode_kernel<T><<<num_blocks_for(n), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        sums.const_data_ptr<int64_t>(), n, std::ldexp(1.0, -q), factor, out.data_ptr<T>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor block_sums_of_squares(const at::Tensor& x, int64_t block_elements) {
  check(x, x.numel());
  MANIPLE_INVARIANT(x.numel() % block_elements == 0, "{} elements in blocks of {}", x.numel(),
                    block_elements);
  const int64_t num_blocks = x.numel() / block_elements;
  at::Tensor out = at::empty({num_blocks}, x.options().dtype(at::kDouble));
  if (num_blocks == 0) return out;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    squares_kernel<T><<<static_cast<int>(num_blocks), kLanes, 0,
                        c10::cuda::getCurrentCUDAStream()>>>(x.const_data_ptr<T>(), block_elements,
                                                            out.data_ptr<double>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

uint64_t hash(const at::Tensor& x) {
  check(x, x.numel());
  const auto n = static_cast<int64_t>(x.nbytes());
  if (n == 0) return word_hash({});
  const c10::cuda::CUDAGuard guard(x.device());  // any thread may ask
  const int blocks = num_blocks_for((n + 7) / 8);
  at::Tensor sums = at::empty({blocks}, x.options().dtype(at::kLong));
  hash_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      static_cast<const uint8_t*>(x.const_data_ptr()), n, sums.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return word_hash_end(static_cast<uint64_t>(sums.sum().item<int64_t>()), n);
}

void adamw(const AdamwStep& step, const at::Tensor& gradient, at::Tensor master, at::Tensor m,
           at::Tensor v, at::Tensor value) {
  const int64_t n = gradient.numel();
  for (const at::Tensor& t : {gradient, master, m, v, value}) check(t, n);
  if (n == 0) return;
  with_type(master, [&](auto zero) {
    using T = decltype(zero);
    const AdamwScalars<T> s{static_cast<T>(1 - step.lr * step.weight_decay),
                            static_cast<T>(step.beta1),
                            static_cast<T>(step.beta2),
                            static_cast<T>(1 - step.beta1),
                            static_cast<T>(1 - step.beta2),
                            static_cast<T>(step.lr / step.correction1),
                            static_cast<T>(1 / std::sqrt(step.correction2)),
                            static_cast<T>(step.eps),
                            static_cast<T>(step.gradient_factor)};
    auto launch = [&](auto* out) {
      adamw_kernel<<<num_blocks_for(n), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          s, n, gradient.const_data_ptr<T>(), master.data_ptr<T>(), m.data_ptr<T>(),
          v.data_ptr<T>(), out);
    };
    if constexpr (sizeof(T) == 4) {
      if (value.scalar_type() == at::kBFloat16) {
        launch(static_cast<uint16_t*>(value.data_ptr()));
        return;
      }
    }
    launch(value.data_ptr<T>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace maniple::device

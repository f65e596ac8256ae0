#pragma once

#include <nccl.h>

namespace c10::cuda {

cudaStream_t getCurrentCUDAStream();

}  // namespace c10::cuda

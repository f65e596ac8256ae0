// Where a rank computes. One implementation for builds with CUDA (device_cuda.cpp) and one for
// those without (device_none.cpp), so that nobody else asks which build this is.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace maniple {

// Throws ConfigError when this build cannot compute on run.device=`name`; any machine.
void require_device(const std::string& name);

// The device of run.device=`name` for the rank `rank_on_host` of those on this host: `cuda` deals
// the GPUs out in turn, so several ranks may share one. Throws ConfigError when this build has no
// CUDA or this machine no GPU.
at::Device find_device(const std::string& name, int rank_on_host);

// Prepares the calling thread, which is the one that computes, for `device`. On a GPU: makes it
// the current one, takes deterministic kernels only (equal inputs give equal bits), accumulates bf16
// products in fp32, and runs backward on this thread, so that communication in it comes from the
// thread that may call MPI.
void use_device(const at::Device& device);

// `host`, which moves host memory only, extended to tensors on `device`: NCCL where every rank has a
// GPU of its own, else staged through pinned host memory. On a CPU `host` itself. Collective over
// `host`. Called after use_device.
std::unique_ptr<Communicator> extend_to_device(std::unique_ptr<Communicator> host,
                                               const at::Device& device);

// What computes there: equal kinds give equal bits.
std::string device_kind(const at::Device& device);

// For `maniple doctor`: the GPUs, or why there are none.
std::string describe_gpus();

}  // namespace maniple

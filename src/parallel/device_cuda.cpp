// device.h of a build with CUDA.
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/core/AutogradState.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "core/errors.h"
#include "parallel/device.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"

namespace maniple {
namespace {

// The same for every rank of a process.
void choose_kernels() {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);  // what cuBLAS needs for equal bits
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setAllowBF16ReductionCuBLAS(false);
}

// Whether no two ranks compute on one GPU. Collective over host.
bool one_gpu_each(Communicator& host, const at::Device& device) {
  const auto& uuid = at::cuda::getDeviceProperties(device.index())->uuid;
  at::Tensor mine = at::empty({sizeof uuid.bytes}, at::TensorOptions(at::kByte));
  std::memcpy(mine.data_ptr(), uuid.bytes, sizeof uuid.bytes);
  at::Tensor all = at::empty({host.size(), mine.numel()}, mine.options());
  host.all_gather(mine, all);
  std::set<std::string> distinct;
  for (int r = 0; r < host.size(); ++r)
    distinct.emplace(static_cast<const char*>(all[r].data_ptr()), sizeof uuid.bytes);
  return static_cast<int>(distinct.size()) == host.size();
}

}  // namespace

void require_device(const std::string& /*name*/) {}

at::Device find_device(const std::string& name, int rank_on_host) {
  if (name == "cpu") return at::kCPU;
  const int num_gpus = c10::cuda::device_count();
  if (num_gpus == 0)
    throw ConfigError(fmt::format(
        "cannot compute on run.device={}: this machine has no GPU that CUDA can use (see "
        "nvidia-smi); repair its driver, or set run.device=cpu",
        name));
  return {at::kCUDA, static_cast<c10::DeviceIndex>(rank_on_host % num_gpus)};
}

void use_device(const at::Device& device) {
  if (!device.is_cuda()) return;
  static std::once_flag once;
  std::call_once(once, choose_kernels);
  c10::cuda::set_device(device.index());
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
}

std::unique_ptr<Communicator> extend_to_device(std::unique_ptr<Communicator> host,
                                               const at::Device& device) {
  if (!device.is_cuda()) return host;
  if (host->size() > 1 && one_gpu_each(*host, device))
    return make_nccl_communicator(std::move(host));
  return make_staged_communicator(std::move(host));
}

std::string device_kind(const at::Device& device) {
  if (device.is_cpu()) return at::get_cpu_capability();
  const auto* p = at::cuda::getDeviceProperties(device.index());
  return fmt::format("{} {}.{}", p->name, p->major, p->minor);
}

std::string describe_gpus() {
  const int num_gpus = c10::cuda::device_count();
  if (num_gpus == 0) return "none that CUDA can use";
  std::string text;
  for (int i = 0; i < num_gpus; ++i) {
    const auto* p = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(i));
    text += fmt::format("{}{} ({:.0f} GiB)", i ? ", " : "", p->name,
                        static_cast<double>(p->totalGlobalMem) / (1 << 30));
  }
  return text;
}

}  // namespace maniple

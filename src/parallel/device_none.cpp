// device.h of a build without CUDA.
#include <ATen/Version.h>

#include "core/errors.h"
#include "parallel/device.h"

namespace maniple {

void require_device(const std::string& name) {
  if (name != "cpu")
    throw ConfigError(fmt::format(
        "cannot compute on run.device={}: this program was built without CUDA; build one with "
        "scripts/build cuda (docs/gpu.md), or set run.device=cpu",
        name));
}

at::Device find_device(const std::string& name, int /*rank_on_host*/) {
  require_device(name);
  return at::kCPU;
}

void use_device(const at::Device& /*device*/) {}

std::unique_ptr<Communicator> extend_to_device(std::unique_ptr<Communicator> host,
                                               const at::Device& /*device*/) {
  return host;
}

std::string device_kind(const at::Device& /*device*/) { return at::get_cpu_capability(); }

std::string describe_gpus() { return "this build has no CUDA (scripts/build cuda makes one)"; }

}  // namespace maniple

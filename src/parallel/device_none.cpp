// device.h of a build without CUDA.
#include "core/errors.h"
#include "parallel/device.h"

namespace maniple {

at::Device find_device(const std::string& name, int /*rank_on_host*/) {
  if (name != "cpu")
    throw ConfigError(fmt::format(
        "cannot compute on run.device={}: this program was built without CUDA; build one with "
        "scripts/build cuda (docs/gpu.md), or set run.device=cpu",
        name));
  return at::kCPU;
}

void use_device(const at::Device& /*device*/) {}

std::unique_ptr<Communicator> extend_to_device(std::unique_ptr<Communicator> host,
                                               const at::Device& /*device*/) {
  return host;
}

std::string describe_gpus() { return "this build has no CUDA (scripts/build cuda makes one)"; }

}  // namespace maniple

// The device that a test program computes on: MANIPLE_TEST_DEVICE, which is cpu, and cuda in test_gpu.
#pragma once

#include "parallel/device.h"

namespace maniple {

inline at::Device test_device() { return find_device(MANIPLE_TEST_DEVICE, 0); }

}  // namespace maniple

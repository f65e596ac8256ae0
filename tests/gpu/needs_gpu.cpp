// Skips every test of this program on a machine without a GPU.
#include <gtest/gtest.h>

#include "core/errors.h"
#include "test_device.h"

namespace maniple {
namespace {

class NeedsGpu : public testing::Environment {
  void SetUp() override {
    try {
      test_device();
    } catch (const ConfigError& e) {
      GTEST_SKIP() << e.what();
    }
  }
};

[[maybe_unused]] const auto* const kNeedsGpu = testing::AddGlobalTestEnvironment(new NeedsGpu);

}  // namespace
}  // namespace maniple

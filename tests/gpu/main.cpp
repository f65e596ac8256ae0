// The tests of this program need a GPU: without one it says so, runs none and returns 77 (skipped).
#include <gtest/gtest.h>

#include <cstdio>

#include "core/errors.h"
#include "test_device.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    maniple::test_device();
  } catch (const maniple::ConfigError& e) {
    std::printf("all tests skipped: %s\n", e.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}

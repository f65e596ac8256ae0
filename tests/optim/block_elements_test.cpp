#include <gtest/gtest.h>

#include "optim/sharded_adamw.h"

namespace maniple {
namespace {

TEST(BlockElements, AreAPowerOfTwoByTheSizeOfTheModel) {
  OptimConfig optim;
  EXPECT_EQ(block_elements(optim, 1), 4096);
  EXPECT_EQ(block_elements(optim, 64 * 8192 - 1), 4096);
  EXPECT_EQ(block_elements(optim, 64 * 8192), 8192);
  EXPECT_EQ(block_elements(optim, 3'800'000), 32768);
  EXPECT_EQ(block_elements(optim, 30'532'122'624), 1 << 20);
  optim.block_elements = 1000;
  EXPECT_EQ(block_elements(optim, 1 << 30), 1000);
}

}  // namespace
}  // namespace maniple

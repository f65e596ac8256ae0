#include "kernels/word_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace maniple {
namespace {

TEST(WordHash, TellsEveryFlippedBitEveryOrderAndEveryLength) {
  std::vector<uint8_t> bytes(41);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 % 5);
  std::set<uint64_t> seen = {word_hash(bytes)};
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::vector<uint8_t> flipped = bytes;
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT_TRUE(seen.insert(word_hash(flipped)).second) << "bit " << bit;
  }
  std::vector<uint8_t> swapped = bytes;  // words 0 and 1
  std::swap_ranges(swapped.begin(), swapped.begin() + 8, swapped.begin() + 8);
  EXPECT_TRUE(seen.insert(word_hash(swapped)).second);
  for (int more = 0; more < 10; ++more) {  // zeros count
    bytes.push_back(0);
    EXPECT_TRUE(seen.insert(word_hash(bytes)).second) << more;
  }
  for (size_t n = 0; n < 9; ++n)
    EXPECT_TRUE(seen.insert(word_hash(std::vector<uint8_t>(n))).second) << n << " zeros";
}

}  // namespace
}  // namespace maniple

#include "core/text.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/fingerprint.h"

namespace maniple {
namespace {

TEST(Text, DoublesAreShortestAndAlwaysFloats) {
  EXPECT_EQ(format_double(0.1), "0.1");
  EXPECT_EQ(format_double(1), "1.0");
  EXPECT_EQ(format_double(-0.0), "-0.0");
  EXPECT_EQ(format_double(1e-8), "1.0e-08");
  EXPECT_EQ(format_double(1.5e-8), "1.5e-08");
  EXPECT_EQ(format_double(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(format_double(-INFINITY), "-.inf");
  EXPECT_EQ(format_double(NAN), ".nan");
  for (double x : {5e-324, 1.7976931348623157e308, 1e22, 123456789.125, 2.0 / 3}) {
    EXPECT_EQ(std::strtod(format_double(x).c_str(), nullptr), x);
  }
}

TEST(Text, EditDistanceCountsSwapsOnce) {
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("steps", "setps"), 1);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
}

TEST(Text, NearestNameIsEmptyWhenNothingIsNear) {
  EXPECT_EQ(nearest_name("stesp", {"dir", "steps", "seed"}), "steps");
  EXPECT_EQ(nearest_name("zzzzzzzz", {"dir", "steps"}), "");
  EXPECT_EQ(nearest_name(std::string(100000, 'a'), {"dir"}), "");
}

TEST(Text, OneLineHasNoControlCharacters) {
  EXPECT_EQ(one_line("a\nb\x1b[31m"), "a b [31m");
  EXPECT_EQ(one_line("abcdef", 3), "abc...");
}

TEST(Fingerprint, HexIsHighWordFirst) {
  Fingerprint f;
  f.hi = 0x1, f.lo = 0xabcdef;
  EXPECT_EQ(f.hex(), "00000000000000010000000000abcdef");
}

}  // namespace
}  // namespace maniple

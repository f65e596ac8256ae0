// Bits to flip in a slice's memory, so that tests can see them found (faults.flip).
#pragma once

#include <string>
#include <vector>

#include "elastic/types.h"

namespace maniple {

struct BitFlip {
  SliceId slice = 0;
  int64_t position = 0;
  Step step = 0;
  std::string what;
  int64_t element = 0;
  int bit = 0;
};

// "slice:position:step:what:element:bit", a list with commas. Throws ConfigError.
std::vector<BitFlip> parse_flips(const std::string& text);

}  // namespace maniple

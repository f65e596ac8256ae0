#pragma once

#include <vector>

#include "elastic/types.h"

namespace maniple {

// Slices 0 to n - 1, each on a host of its own.
inline std::vector<Member> members_of(uint32_t n) {
  std::vector<Member> members;
  for (uint32_t s = 0; s < n; ++s) members.push_back({s, 1, s});
  return members;
}

}  // namespace maniple

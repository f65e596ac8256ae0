#pragma once

#include <chrono>

namespace maniple {

// Of the steady clock.
inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace maniple

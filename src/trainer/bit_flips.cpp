#include "trainer/bit_flips.h"

#include <cstdio>
#include <sstream>

#include "core/errors.h"

namespace maniple {

std::vector<BitFlip> parse_flips(const std::string& text) {
  std::vector<BitFlip> flips;
  std::istringstream list(text);
  for (std::string one; std::getline(list, one, ',');) {
    BitFlip f;
    char what[16] = "", end = 0;
    const int n = std::sscanf(one.c_str(), " %u:%ld:%ld:%15[a-z]:%ld:%d %c", &f.slice, &f.position,
                              &f.step, what, &f.element, &f.bit, &end);
    f.what = what;
    const bool known = f.what == "master" || f.what == "m" || f.what == "v" || f.what == "parameter";
    if (n != 6 || !known || f.element < 0 || f.bit < 0)
      throw ConfigError(fmt::format(
          "faults.flip: '{}' is not slice:position:step:what:element:bit with what one of master, "
          "m, v, parameter; example: 1:0:20:master:5:30",
          one));
    flips.push_back(f);
  }
  return flips;
}

}  // namespace maniple

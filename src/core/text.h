// Small text helpers shared by the config loader and the metric sinks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace maniple {

// The shortest decimal that parses back as the same double. It always carries a point or stands
// for a non-number, so that YAML 1.1, YAML 1.2 and JSON readers all take it for a float: "0.1",
// "1.0", "-0.0", "1.0e-08"; ".inf", "-.inf", ".nan" (YAML's words) for what JSON cannot say.
std::string format_double(double value);

// Restricted Damerau-Levenshtein distance: insertions, deletions, substitutions, swaps of
// neighbours, each 1.
int64_t edit_distance(std::string_view a, std::string_view b);

// The candidate nearest to `word` (the first of equals), or "" when none is near enough to be what
// was meant.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

// `text` on one line: control characters become spaces, more than `limit` bytes are cut with "...".
std::string one_line(std::string_view text, size_t limit = 200);

}  // namespace maniple

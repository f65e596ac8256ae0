// What a teacher said about the tokens of one row, as a store keeps it. Source: model.md 3.2, 3.6.
#pragma once

#include <cstdint>
#include <vector>

namespace maniple {

// Token t's entries are [begin[t], begin[t + 1]) of the lists behind it, by ascending id. A token
// without a target in its document has none and a mass of 0.
struct TeacherRow {
  std::vector<int32_t> begin;      // [seq_len + 1]; empty: no teacher
  std::vector<int32_t> id;         // [entries]
  std::vector<int32_t> count;      // [entries]: draws of the id; empty for top-k
  std::vector<float> log_value;    // [entries]: ln p, importance: ln(p / q); empty for plain counts
  std::vector<float> mass;         // [seq_len]: sum of p over the entries
  std::vector<float> label_logp;   // [seq_len]: ln p of the target
};

}  // namespace maniple

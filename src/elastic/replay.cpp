#include "elastic/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/errors.h"

namespace maniple {
namespace {

// Two members computed the same range, with different results.
struct Conflict {
  uint32_t a, b;
};

}  // namespace

uint32_t rotation_of(uint32_t execution, uint32_t members) {
  return execution < 2 ? 0 : (execution - 1) % members;
}

const char* to_string(Finding finding) {
  static constexpr const char* kNames[] = {"open",   "genuine",   "transient",
                                           "defect", "undecided", "software"};
  return kNames[static_cast<size_t>(finding)];
}

Judgement judge(const std::vector<Execution>& executions) {
  MANIPLE_INVARIANT(!executions.empty(), "nothing to judge");
  const auto members = static_cast<uint32_t>(executions[0].ranges.size());
  if (executions.size() < 3) return {};

  std::set<uint32_t> inconsistent;  // gave two results for one range
  std::vector<Conflict> conflicts;  // of members that agree with themselves about the range
  bool is_confirmed = true;         // the last result of each range was given before
  const Execution& last = executions.back();
  for (uint32_t range = 0; range < members; ++range) {
    bool confirmed = false;
    for (size_t i = 0; i + 1 < executions.size(); ++i) {
      confirmed |= executions[i].ranges[range] == last.ranges[range];
      for (size_t k = i + 1; k < executions.size(); ++k) {
        const uint32_t a = executions[i].member_of(range), b = executions[k].member_of(range);
        if (executions[i].ranges[range] == executions[k].ranges[range]) continue;
        if (a == b)
          inconsistent.insert(a);
        else
          conflicts.push_back({a, b});
      }
    }
    is_confirmed &= confirmed;
  }
  const std::vector<uint32_t> fickle(inconsistent.begin(), inconsistent.end());
  if (fickle.size() > 1) return {Finding::kSoftware, {}};
  if (!fickle.empty()) return {is_confirmed ? Finding::kTransient : Finding::kDefect, fickle};
  if (conflicts.empty()) return {Finding::kGenuine, {}};

  // Who takes part in every conflict? A third opinion about a range leaves one.
  std::vector<uint32_t> suspects;
  for (uint32_t m = 0; m < members; ++m)
    if (std::all_of(conflicts.begin(), conflicts.end(),
                    [&](const Conflict& c) { return c.a == m || c.b == m; }))
      suspects.push_back(m);
  if (suspects.size() == 1) return {Finding::kDefect, suspects};
  if (suspects.empty()) return {Finding::kSoftware, {}};
  if (members > 2 && executions.size() == 3) return {};
  return {Finding::kUndecided, suspects};
}

std::string describe(const Judgement& judgement, const std::vector<SliceId>& slices) {
  std::vector<SliceId> names;
  for (const uint32_t member : judgement.blamed) names.push_back(slices[member]);
  const std::string who =
      fmt::format("{} {}", names.size() == 1 ? "slice" : "slices", fmt::join(names, " and "));
  switch (judgement.finding) {
    case Finding::kGenuine:
      return "all executions are equal: what the data and the model give, or an error outside of them";
    case Finding::kTransient:
      return who + " gave another result once; the confirmed one is taken";
    case Finding::kDefect:
      return who + " computes wrongly: the others agree without it";
    case Finding::kUndecided:
      return who + " contradict each other and nobody can tell which is right";
    case Finding::kSoftware:
      return "several slices contradict themselves or each other: a software error or unequal "
             "hardware; no slice is dropped, and losses are not bit-identical";
    case Finding::kOpen:
      break;
  }
  return "not decided yet";
}

}  // namespace maniple

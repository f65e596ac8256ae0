// Replay of a suspicious step: what its executions say about the slices (docs/elastic.md, silent
// data corruption). Pure functions, so all slices come to the same verdict.
//
// A step's units are cut into ranges, one for each member. In an execution with rotation r, member m
// computes range (m + r) mod S. Equal inputs give equal bits on healthy slices, so two fingerprints
// of one range that differ prove that one of them was computed wrongly.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/fingerprint.h"
#include "elastic/types.h"

namespace maniple {

// One complete execution of a step.
struct Execution {
  uint32_t rotation = 0;
  std::vector<Fingerprint> ranges;  // what its member computed for each range

  uint32_t member_of(uint32_t range) const {
    const auto members = static_cast<uint32_t>(ranges.size());
    return (range + members - rotation % members) % members;
  }
};

// Rotation of execution number n (from 0) of a step: 0, 0, 1, 2. The second shows a slice that
// contradicts itself, the third one that is always wrong, the fourth who is in the minority.
uint32_t rotation_of(uint32_t execution, uint32_t members);

enum class Finding : uint8_t {
  kOpen,       // another execution is needed
  kGenuine,    // nothing differs: what looked suspicious is what the data and the model give
  kTransient,  // a slice computed something else before; the last execution is confirmed
  kDefect,     // `blamed` computes wrongly
  kUndecided,  // two slices contradict each other and there is no third: `blamed` are both
  kSoftware,   // several slices contradict themselves or each other: no device is at fault
};
const char* to_string(Finding finding);

struct Judgement {
  Finding finding = Finding::kOpen;
  std::vector<uint32_t> blamed;  // members, ascending

  // The last execution is what the step gives.
  bool commits() const {
    return finding == Finding::kGenuine || finding == Finding::kTransient ||
           finding == Finding::kSoftware;
  }
};

// Of the executions 0, 1, ... of a step by the same members, all complete.
Judgement judge(const std::vector<Execution>& executions);

// For people: "slice 2 computed something else before; ...". `slices`: of the members.
std::string describe(const Judgement& judgement, const std::vector<SliceId>& slices);

}  // namespace maniple

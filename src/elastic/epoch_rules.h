// The rules by which an epoch follows another (spec/elastic.md section 4, epoch change 3 and 4), as
// pure functions. What is safe about an epoch change is decided here and in membership.cpp.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "elastic/history.h"
#include "elastic/reshard.h"

namespace maniple {

// The last step that counts: K with the record that finishes its update.
struct Settlement {
  Step committed = 0;
  std::optional<DecisionRecord> record;
};

// K = max(last committed of the answers, K of the log), over answers of the log's lineage. Answers
// of slices that have died since count too: what they saw was unanimous.
Settlement settle(const History& history, const std::map<SliceId, State>& answers);

// The placements that the slice which answered `state` holds whole at K, or can finish to K by its
// reduced gradients and the record. Empty: it gets everything anew.
std::vector<EpochNumber> usable_holds(const History& history, const Settlement& settlement,
                                      const State& state);

struct Candidate {
  Member member;
  std::string address;
};

// EPOCH(e + 1) with these members. When a block has no holder among them, it loads the last
// published checkpoint; when the state is suspect, the last verified one. `survivors` have answered; `newcomers` hold nothing.
EpochDecision next_epoch(const History& history, const BlockLayout& layout,
                         const std::map<SliceId, State>& answers,
                         const std::vector<Candidate>& survivors,
                         const std::vector<Candidate>& newcomers, const Fingerprint& build,
                         const std::string& cause);

}  // namespace maniple

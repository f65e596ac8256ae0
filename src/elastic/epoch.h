// EPOCH: what the coordinator decides about the membership, as it is logged and sent.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "elastic/types.h"
#include "elastic/vote.h"

namespace maniple {

// The members of an earlier epoch whose placement some member still holds.
struct PastEpoch {
  EpochNumber number = 0;
  std::vector<Member> members;
  bool operator==(const PastEpoch&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.number, s.members);
  }
};

struct EpochDecision {
  Incarnation incarnation = 0;  // of the coordinator that logged it
  EpochNumber number = 0;
  // Number of the last EPOCH that loaded a checkpoint (epoch 1 does). State of another lineage is
  // void: it belongs to a history that was rolled back.
  EpochNumber lineage = 0;
  Step committed = 0;                    // K
  std::optional<DecisionRecord> record;  // of K; absent when K came from a checkpoint
  std::vector<Member> members;           // by slice
  std::vector<std::string> addresses;    // of the members' leaders, same order
  // Which placements each member holds whole, at K or at K - 1 with the reduced gradients of K.
  // Empty: the member has nothing that counts and gets everything.
  std::vector<std::vector<EpochNumber>> holds;
  std::vector<PastEpoch> past;  // every epoch named in `holds`
  Fingerprint build;            // which all members share
  // Up to this step of each member's, every step has a canary that it computes: it is on probation.
  std::vector<Step> watched;
  std::string cause;            // for people

  bool loads_checkpoint() const { return lineage == number; }
  // Index in `members`, or -1.
  int index_of(SliceId slice) const {
    for (size_t i = 0; i < members.size(); ++i)
      if (members[i].slice == slice) return static_cast<int>(i);
    return -1;
  }
  bool has(SliceId slice, Life life) const {
    const int i = index_of(slice);
    return i >= 0 && members[static_cast<size_t>(i)].life == life;
  }
  bool operator==(const EpochDecision&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.incarnation, s.number, s.lineage, s.committed, s.record, s.members, s.addresses, s.holds,
      s.past, s.build.lo, s.build.hi, s.watched, s.cause);
  }
};

}  // namespace maniple

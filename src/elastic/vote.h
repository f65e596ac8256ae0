// The vote on one attempt of one step (spec/elastic.md section 4).
#pragma once

#include <cstdint>
#include <vector>

#include "core/fingerprint.h"
#include "elastic/types.h"

namespace maniple {

// 128-bit fixed point, two's complement; adds modulo 2^128, so sums have no order.
struct Fixed128 {
  uint64_t lo = 0, hi = 0;
  bool operator==(const Fixed128&) const = default;
  Fixed128& operator+=(const Fixed128& other) {
    lo += other.lo;
    hi += other.hi + (lo < other.lo ? 1 : 0);
    return *this;
  }
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.lo, s.hi);
  }
};

enum class Health : uint8_t {
  kOk,
  kPoisoned,  // an exchange or a rank failed: the attempt's numbers are worthless
  kSuspect,   // the numbers are there, but a check did not agree: replay before a commit
};
template <>
struct EnumLast<Health> {
  static constexpr Health value = Health::kSuspect;
};

// What the host of a slice computed in an attempt; it travels inside PREPARE. Fixed size.
struct AttemptReport {
  Health health = Health::kOk;
  bool finite = true;
  int64_t tokens = 0;          // targets of this slice's units
  Fixed128 loss;               // sum over this slice's units
  Fixed128 squared_norm;       // sum over the blocks this slice owns
  Fingerprint reduced_blocks;  // of the reduced gradients it owns and shadows
  Fingerprint state;           // of its state after the update before
  uint8_t requests = 0;        // bits, ORed over the slices: kRequest...
  bool operator==(const AttemptReport&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.health, s.finite, s.tokens, s.loss, s.squared_norm, s.reduced_blocks.lo,
      s.reduced_blocks.hi, s.state.lo, s.state.hi, s.requests);
  }
};
constexpr uint8_t kRequestCheckpoint = 1, kRequestStop = 2, kRequestEvaluate = 4;

// PREPARE(e, k, a): the slice has the reduced gradients of attempt a of step k and keeps them until
// the step is settled. It cannot be taken back.
struct Prepare {
  Incarnation incarnation = 0;  // of the coordinator that logged the epoch
  EpochNumber epoch = 0;
  Step step = 0;
  uint32_t attempt = 0;
  SliceId slice = 0;
  AttemptReport report;
  bool operator==(const Prepare&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.incarnation, s.epoch, s.step, s.attempt, s.slice, s.report);
  }
};

enum class Outcome : uint8_t {
  kCommit,
  kSkip,  // step, data and schedule advance, the state stays as it is
  kRedo,  // attempt a + 1
};
template <>
struct EnumLast<Outcome> {
  static constexpr Outcome value = Outcome::kRedo;
};

// Everything that a committed step's update is a function of, beside the reduced gradients.
struct DecisionRecord {
  Step step = 0;
  Outcome outcome = Outcome::kCommit;  // never kRedo
  std::vector<Prepare> prepares;       // of all members, by slice
  bool operator==(const DecisionRecord&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.outcome, s.prepares);
  }
};

// The outcome of a full set of PREPAREs of one attempt: kRedo unless all are ok (unanimity rules
// out split brain); kSkip if one is not finite or the step has no targets. A pure function of the
// records, so all slices that have them decide alike.
Outcome decide(const std::vector<Prepare>& prepares);
// Every slice has the attempt's numbers, whether they are suspicious or not.
bool is_complete(const std::vector<Prepare>& prepares);

}  // namespace maniple

// The words that coordinator, agents and slices share. Nothing here communicates or reads a clock.
#pragma once

#include <cstdint>

#include "elastic/wire.h"

namespace maniple {

using Incarnation = uint64_t;  // counts the starts of the coordinator; 0: none seen yet
using EpochNumber = uint64_t;  // version of the membership; 0: before the first
using SliceId = uint32_t;      // number of a slot, which runs one slice at a time
using Life = uint32_t;  // counts the launches of a slot; a life that was dropped never returns
using Step = int64_t;   // counts from 1; 0: the initial state
using Time = int64_t;   // microseconds of a monotonic clock

constexpr Time kMillisecond = 1000;
constexpr Time kSecond = 1000 * kMillisecond;

// One running slice as a member of an epoch.
struct Member {
  SliceId slice = 0;
  Life life = 0;
  uint64_t host = 0;  // failure domain: equal for slices that a dead host takes along
  bool operator==(const Member&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.slice, s.life, s.host);
  }
};

// How many copies of the optimizer state there are (spec/elastic.md section 5).
enum class Redundancy : uint8_t { kShadow, kReplicated, kNone };
template <>
struct EnumLast<Redundancy> {
  static constexpr Redundancy value = Redundancy::kNone;
};

// What a slice is doing, as its beats say.
enum class SlicePhase : uint8_t {
  kWaiting,    // registered, member of no epoch
  kStopped,    // has answered STOP of `epoch` with STATE; decides nothing in it
  kRestoring,  // has accepted EPOCH, gets its state together
  kReady,      // has said READY, waits for RUN
  kRunning,
  kFinished,  // has committed the last step, waits for Done
  kLeft,      // has left for good
};
template <>
struct EnumLast<SlicePhase> {
  static constexpr SlicePhase value = SlicePhase::kLeft;
};

struct SliceStatus {
  SlicePhase phase = SlicePhase::kWaiting;
  EpochNumber epoch = 0;  // last EPOCH accepted, or last STOP answered if that is later
  Step committed = 0;
  bool operator==(const SliceStatus&) const = default;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.phase, s.epoch, s.committed);
  }
};

}  // namespace maniple

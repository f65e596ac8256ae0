// Every time-out of an elastic job, derived from one number, the lease T (spec/elastic.md section
// 3). A time-out is never the ordinary way out of a wait: waits end by STOP.
#pragma once

#include <algorithm>

#include "core/errors.h"
#include "elastic/types.h"

namespace maniple {

class Timeouts {
 public:
  static constexpr Time kShortestLease = 100 * kMillisecond, kLongestLease = 3600 * kSecond;

  // Throws ConfigError outside [100 ms, 1 h]: below, a beat is shorter than a busy scheduler's
  // delays.
  explicit Timeouts(Time lease = 2 * kSecond) : lease_(lease) {
    if (lease < kShortestLease || lease > kLongestLease)
      throw ConfigError(fmt::format("elastic.lease: {} s; a lease lies between 0.1 s and 3600 s",
                                    static_cast<double>(lease) / kSecond));
  }

  Time lease() const { return lease_; }              // silence after which a slice is dropped
  Time beat() const { return lease_ / 40; }          // between two beats
  Time tick() const { return lease_ / 40; }          // between two Ticks of the coordinator
  Time suspicion() const { return lease_ / 4; }      // silence that is worth an event
  Time late() const { return lease_ / 4; }           // a loop this late grants fresh leases
  Time resend() const { return lease_ / 4; }         // before a lost message is sent again
  Time connect() const { return lease_; }            // establishing a link
  Time orphan() const { return 5 * lease_; }         // a slice without coordinator and peers leaves
  Time transport() const { return 10 * lease_; }     // sockets, NCCL: never decide
  Time harness() const { return 60 * lease_; }       // whoever tests the job kills it
  Time forming() const { return 30 * lease_; }       // waiting for the declared slices
  Time admission_gap() const { return lease_; }      // between two planned changes of the members
  Time healthy() const { return 100 * lease_; }  // a life this long is forgiven its failures

  // Before a relaunch after so many failures in a row: soon the first time, then a lease, doubling.
  Time back_off(uint32_t failures) const {
    return failures < 2 ? beat() : lease_ << std::min(failures - 2, 6u);
  }

  // No progress count for this long is a hang, given the median gap between two counts.
  Time hang(Time median_gap) const { return std::max(3 * lease_, 20 * median_gap); }

 private:
  Time lease_;
};

}  // namespace maniple

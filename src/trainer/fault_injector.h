// Bits flipped in a slice on purpose, so that tests can see what finds them (faults.flip,
// faults.sticky), and units that take longer (faults.unit_seconds). Off and free without faults.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "elastic/types.h"
#include "trainer/step.h"

namespace maniple {

struct BitFlip {
  std::optional<SliceId> slice;  // none: every one
  int64_t position = 0;
  Step step = 0;
  std::string what;
  int64_t element = 0;
  int bit = 0;
  // False: once, in the first attempt of the step in the slice's first life. True: from that step
  // on, every time that `what` is computed.
  bool sticky = false;
  double probability = 1;  // of each time
  // In the state, before the step: master, m, v, parameter. In gradients: gradient (of a unit),
  // sum (of the slice), reduced. In a forward: hidden (input of a layer), gate (weights of the
  // chosen experts), index (their numbers), expert (their outputs), row (what an exchange for the
  // experts has brought).
  bool in_state() const;
};

// "slice:position:step:what:element:bit", sticky ones with ":probability" behind it if need be, a list
// with commas; a slice of "all" is every one. Throws ConfigError, which names `key`.
std::vector<BitFlip> parse_flips(const std::string& text, const std::string& key, bool sticky);
std::vector<BitFlip> parse_faults(const FaultsConfig& faults);

class FaultInjector {
 public:
  // Those for this rank; hooks into the step and the model, which it must not outlive.
  FaultInjector(const FaultsConfig& faults, SliceId slice, Life life, int64_t position,
                TrainStep& step, TrainedModel& model);
  // An attempt begins.
  void begin(Step step, uint32_t attempt);

 private:
  void end_unit();  // sleeps away what is left of the unit's time
  void reach(const std::string& what, const std::function<void(const BitFlip&)>& damage);

  std::vector<BitFlip> waiting_;
  const Life life_;
  const uint64_t seed_;  // of draws that no two lives and no two calls have in common
  uint64_t draws_ = 0;
  TrainedModel& model_;
  Step step_ = 0;
  bool first_attempt_ = true;
  const std::chrono::duration<double> unit_time_;
  std::chrono::steady_clock::time_point unit_end_;  // not before
};

}  // namespace maniple

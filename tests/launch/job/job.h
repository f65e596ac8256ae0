// A job of stand-ins: the real coordinator, agents and launcher around slices whose ranks "train" a
// 64-bit number. Every unit contributes an integer that depends on the number, the step and the
// unit; the sum changes the number; the loss is a function of it. So the losses are a pure function
// of the step, whoever computed which unit.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "core/random.h"
#include "elastic/coordinator_io.h"

namespace maniple::standin {

constexpr int kUnits = 12;

inline uint64_t initial_value() { return 42; }
inline uint64_t unit_gradient(uint64_t value, Step step, int unit) {
  return mix64(value ^ mix64(static_cast<uint64_t>(step) * 1000 + static_cast<uint64_t>(unit)));
}
inline uint64_t updated(uint64_t value, uint64_t sum) { return mix64(value + sum); }
inline double loss_of(uint64_t value) { return static_cast<double>(value >> 11) * 0x1p-53; }

// The same in all processes of the job, which inherit the environment.
struct Settings {
  std::string run_dir;
  uint32_t slices = 3, spares = 0, min_slices = 1, ranks = 2;
  Step steps = 100;
  Time lease = kSecond, step_time = 10 * kMillisecond;

  static Settings from_environment() {
    const auto number = [](const char* name, int64_t otherwise) {
      const char* text = std::getenv(name);
      return text ? std::atoll(text) : otherwise;
    };
    Settings s;
    s.run_dir = std::getenv("JOB_RUN");
    s.slices = static_cast<uint32_t>(number("JOB_SLICES", s.slices));
    s.min_slices = static_cast<uint32_t>(number("JOB_MIN_SLICES", s.min_slices));
    s.ranks = static_cast<uint32_t>(number("JOB_RANKS", s.ranks));
    s.steps = number("JOB_STEPS", s.steps);
    s.lease = number("JOB_LEASE_US", s.lease);
    s.step_time = number("JOB_STEP_US", s.step_time);
    return s;
  }
  CoordinatorConfig coordinator() const {
    CoordinatorConfig config;
    config.slices = slices;
    config.spares = spares;
    config.min_slices = min_slices;
    config.last_step = steps;
    config.layout = {1, Redundancy::kReplicated};
    config.config_hash = 7;
    config.timeouts = Timeouts(lease);
    return config;
  }
};

// Each role is one process: tests/launch/job/main.cpp.
int run_rank(const Settings& settings, uint32_t position);

}  // namespace maniple::standin

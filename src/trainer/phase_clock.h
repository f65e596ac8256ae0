// Where the seconds of a step go: one phase at a time, each entered by name. Only the trainer reads
// clocks; code below it announces its phases through hooks (MoeContext::on_phase).
#pragma once

#include <array>
#include <chrono>

namespace maniple {

enum class Phase {
  kOther,
  kData,      // waiting for rows
  kForward,   // but for the three below; holds the loss and the gradient of the head
  kDispatch,  // sorting tokens by expert and sending them to its rank, forward
  kExperts,   // the experts' products, forward
  kCombine,   // sending the results back and adding them, forward
  kBackward,
  kOverlap,  // fold and exchange while backward goes on
  kFold,
  kExchange,
  kVote,  // guard and vote
  kUpdate,
  kPublish,
  kCount
};
using PhaseSeconds = std::array<double, static_cast<size_t>(Phase::kCount)>;

class PhaseClock {
 public:
  // The time since the last call belongs to the phase that was entered there.
  void enter(Phase phase) {
    const auto now = std::chrono::steady_clock::now();
    seconds_[static_cast<size_t>(phase_)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
    phase_ = phase;
  }
  Phase phase() const { return phase_; }
  // Ends the phase; seconds of all phases since the last call.
  PhaseSeconds take() {
    enter(Phase::kOther);
    PhaseSeconds taken = seconds_;
    seconds_ = {};
    return taken;
  }

 private:
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  Phase phase_ = Phase::kOther;
  PhaseSeconds seconds_{};
};

}  // namespace maniple

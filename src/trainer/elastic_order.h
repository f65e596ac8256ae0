// What the leader of a slice hears from the membership, as orders to all ranks of the slice.
#pragma once

#include "elastic/membership.h"

namespace maniple {

// What the leader tells the ranks of its slice to do next.
struct Order {
  enum class Kind : uint8_t { kNothing, kAttempt, kUpdate, kRestore, kDrop, kSave, kLeave } kind{};
  EpochNumber epoch = 0;
  Step step = 0;
  uint32_t attempt = 0, execution = 0;
  std::optional<DecisionRecord> record;
  std::optional<EpochDecision> decision;
  bool fresh = false;
  int32_t code = 0;
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.kind, s.epoch, s.step, s.attempt, s.execution, s.record, s.decision, s.fresh, s.code);
  }
};

template <>
struct EnumLast<Order::Kind> {
  static constexpr Order::Kind value = Order::Kind::kLeave;
};

// Actions that are not the training ranks' (Stable) or the leader's alone (ToPeers): nothing.
Order order_for(const MembershipAction& action);

}  // namespace maniple

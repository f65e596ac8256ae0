// What can happen in a moment, and what it leads to.
#include "world.h"

#include <algorithm>

namespace maniple::model {
World::World(const ExplorationPlan& plan) : plan_(plan), slices_(plan.slices) {
  if (slices_ > kMostSlices) throw std::invalid_argument("too many slices to explore");
  config_.slices = plan.slices;
  config_.last_step = plan.steps;
  config_.layout.num_blocks = plan.slices;
  for (SliceId s = 0; s < slices_; ++s) {
    MembershipConfig& config = slice_configs_.emplace_back();
    config.slice = s;
    config.life = 1;
    config.last_step = plan.steps;
    config.registration.host = s;
  }
}

Moment World::first() {
  Moment now;
  now.crashes = static_cast<uint8_t>(plan_.crashes);
  now.evictions = static_cast<uint8_t>(plan_.evictions);
  now.coordinator_crashes = static_cast<uint8_t>(plan_.coordinator_crashes);
  now.refusals = static_cast<uint8_t>(plan_.refusals);
  now.observer = put(Observer(config_.layout, plan_.steps));
  for (SliceId s = 0; s < slices_; ++s)
    now.node[s] = put(Node{ModelSlice(config_.layout, slice_configs_[s])});
  const auto each = [&](auto act) {
    for (SliceId s = 0; s < slices_; ++s) act(s);
  };
  Coordinator machine(config_, History{}, 0);
  const auto actions = machine.start(0);
  observe(now, actions, actions.size());
  now.coordinator = put(std::move(machine));
  each([&](SliceId s) {
    coordinate(now, put({0, 0, s, 0, AgentHello{1, s, 0, false}}), kNoCrash);
  });
  each([&](SliceId s) { happen(now, s, NodeEvent::kConnected); });
  // Up to the first RUN there is one order of things; the exploration begins where all train.
  for (bool again = true; again;) {
    again = false;
    for (SliceId s = 0; s < slices_ && !again; ++s) {
      again = true;
      if (now.up[s])
        now = after(now, {MoveKind::kTell, static_cast<uint8_t>(s)});
      else if (now.down[s])
        now = after(now, {MoveKind::kHear, static_cast<uint8_t>(s)});
      else if (can_restore(now, s))
        now = after(now, {MoveKind::kRestore, static_cast<uint8_t>(s)});
      else
        again = false;
    }
  }
  return now;
}

void World::moves(const Moment& now, std::vector<Move>& moves) {
  moves.clear();
  const auto coordinated = [&](MoveKind kind, uint8_t s, Id event) {
    moves.push_back({kind, s});
    if (now.coordinator_crashes == 0) return;
    const size_t count = coordinator_step(now.coordinator, event, nullptr).effects.size();
    for (size_t n = 0; n < count; ++n) moves.push_back({kind, s, 0, static_cast<uint8_t>(n)});
  };
  for (uint8_t s = 0; s < slices_; ++s) {
    const Node& node = nodes_[now.node[s]];
    if (now.coordinator) {
      if (now.up[s]) coordinated(MoveKind::kTell, s, front(now.up[s]));
      if (node.exit_unreported) coordinated(MoveKind::kReport, s, kLost | s);
      if (now.evictions > 0 && node.alive && is_member(now, s))
        coordinated(MoveKind::kEvict, s, kLost | kFalseAlarm | s);
    }
    for (uint8_t p = 0; p < slices_; ++p) {
      if (!now.to[s][p]) continue;
      moves.push_back({MoveKind::kPrepare, s, p});
      if (!node.alive) moves.push_back({MoveKind::kLosePrepares, s, p});
    }
    if (!node.alive) continue;
    if (now.down[s]) moves.push_back({MoveKind::kHear, s});
    if (now.down[s] && !now.coordinator) moves.push_back({MoveKind::kLoseOrders, s});
    if (node.attempt) moves.push_back({MoveKind::kCompute, s});
    if (node.attempt && now.refusals > 0) moves.push_back({MoveKind::kFail, s});
    if (node.update) moves.push_back({MoveKind::kUpdate, s});
    if (can_restore(now, s)) moves.push_back({MoveKind::kRestore, s});
    if (now.crashes > 0) moves.push_back({MoveKind::kCrash, s});
  }
  if (now.coordinator && now.coordinator_crashes > 0 && !done(now))
    moves.push_back({MoveKind::kCoordinatorCrash});
  if (!now.coordinator) moves.push_back({MoveKind::kCoordinatorStart});
}

Moment World::after(const Moment& before, const Move& move) {
  Moment now = before;
  const SliceId s = move.slice;
  switch (move.kind) {
    case MoveKind::kTell: {
      const Id message = front(now.up[s]);
      now.up[s] = rest(now.up[s]);
      coordinate(now, message, move.actions);
      break;
    }
    case MoveKind::kReport:
      happen(now, s, NodeEvent::kReported);
      coordinate(now, kLost | s, move.actions);
      break;
    case MoveKind::kEvict:
      --now.evictions;
      coordinate(now, kLost | kFalseAlarm | s, move.actions);
      break;
    case MoveKind::kPrepare: {
      const Id prepare = front(now.to[s][move.peer]);
      now.to[s][move.peer] = rest(now.to[s][move.peer]);
      happen(now, move.peer, NodeEvent::kPrepare, prepare);
      break;
    }
    case MoveKind::kLosePrepares:
      now.to[s][move.peer] = 0;
      break;
    case MoveKind::kLoseOrders:
      now.down[s] = 0;
      break;
    case MoveKind::kHear: {
      const Id message = front(now.down[s]);
      now.down[s] = rest(now.down[s]);
      happen(now, s, NodeEvent::kHear, message);
      break;
    }
    case MoveKind::kCompute:
      happen(now, s, NodeEvent::kComputed);
      break;
    case MoveKind::kFail:
      --now.refusals;
      happen(now, s, NodeEvent::kFailed);
      break;
    case MoveKind::kUpdate:
      happen(now, s, NodeEvent::kUpdated);
      break;
    case MoveKind::kRestore:
      happen(now, s, NodeEvent::kRestored);
      break;
    case MoveKind::kCrash:
      --now.crashes;
      happen(now, s, NodeEvent::kCrashed);
      now.down[s] = now.up[s] = 0;
      break;
    case MoveKind::kCoordinatorCrash:
      crash_coordinator(now);
      break;
    case MoveKind::kCoordinatorStart:
      restart_coordinator(now);
      break;
  }
  settle(now);
  return now;
}

std::string World::name(const Moment& now, const Move& move) const {
  const auto first = [&](Id queue) { return message_name(messages_[front(queue)].message); };
  const int s = move.slice;
  const std::string crash =
      move.actions == kNoCrash ? "" : fmt::format(", crash after {} effects", move.actions);
  switch (move.kind) {
    case MoveKind::kTell:
      return fmt::format("slice {} tells {}{}", s, first(now.up[s]), crash);
    case MoveKind::kReport:
      return fmt::format("the exit of {} is reported{}", s, crash);
    case MoveKind::kEvict:
      return fmt::format("slice {} is evicted{}", s, crash);
    case MoveKind::kPrepare:
      return fmt::format("PREPARE {} -> {}", s, move.peer);
    case MoveKind::kLosePrepares:
      return fmt::format("PREPARE {} -> {} is lost", s, move.peer);
    case MoveKind::kLoseOrders:
      return fmt::format("slice {} loses what the coordinator sent", s);
    case MoveKind::kHear:
      return fmt::format("slice {} hears {}", s, first(now.down[s]));
    case MoveKind::kCompute:
      return fmt::format("slice {} has computed", s);
    case MoveKind::kFail:
      return fmt::format("slice {} has failed", s);
    case MoveKind::kUpdate:
      return fmt::format("slice {} has updated", s);
    case MoveKind::kRestore:
      return fmt::format("slice {} has restored", s);
    case MoveKind::kCrash:
      return fmt::format("slice {} crashes", s);
    case MoveKind::kCoordinatorCrash:
      return "the coordinator crashes";
    case MoveKind::kCoordinatorStart:
      return "the coordinator starts";
  }
  return "";
}

bool World::done(const Moment& s) const {
  return s.coordinator && coordinators_[s.coordinator].phase() == CoordinatorPhase::kDone;
}

bool World::all_lost(const Moment& now) const {
  if (!now.coordinator || coordinators_[now.coordinator].phase() != CoordinatorPhase::kPaused)
    return false;
  for (SliceId s = 0; s < slices_; ++s)
    if (nodes_[now.node[s]].alive && is_member(now, s)) return false;
  return true;
}

std::string World::status(const Moment& s) const {
  return s.coordinator ? coordinators_[s.coordinator].status_text() : "no coordinator\n";
}

std::string World::sizes() const {
  return fmt::format(
      "{} coordinators, {} slices, {} observers, {} messages, {} queues, {} + {} + {} transitions",
      coordinators_.size(), nodes_.size(), observers_.size(), messages_.size(), queues_.size(),
      coordinator_steps_.size(), node_steps_.size(), observer_memo_.size());
}

bool World::is_member(const Moment& now, SliceId s) const {
  const History& h = coordinators_[now.coordinator].history();
  return h.epoch && h.epoch->has(s, 1) && !now.lost[s];
}

// What has no other outcome, whenever it happens, happens at once.
void World::settle(Moment& now) {
  // A PREPARE whose delivery makes its receiver do nothing commutes with everything: STOP forgets the
  // votes, and the links of an epoch end with it.
  for (bool again = true; again;) {
    again = false;
    for (SliceId s = 0; s < slices_; ++s)
      for (SliceId p = 0; p < slices_; ++p) {
        if (!now.to[s][p]) continue;
        const Id prepare = front(now.to[s][p]);
        if (nodes_[now.node[p]].alive) {
          if (plan_.late_prepares) continue;
          const NodeStep& step = node_step(now, p, NodeEvent::kPrepare, prepare, nullptr);
          if (!step.silent) continue;
          now.node[p] = step.node;
        }
        now.to[s][p] = rest(now.to[s][p]);
        again = true;
      }
  }
  if (!plan_.canonical || !now.coordinator) return;
  const History& h = coordinators_[now.coordinator].history();
  for (SliceId s = 0; s < slices_; ++s) {
    const bool member = h.epoch && h.epoch->has(s, 1);
    if (member) continue;
    now.lost[s] = 0;
    // The end of a slice that is no member changes its slot alone.
    if (nodes_[now.node[s]].exit_unreported && !now.up[s]) {
      happen(now, s, NodeEvent::kReported);
      coordinate(now, kLost | s, kNoCrash);
      now.lost[s] = 0;
    }
  }
}

}  // namespace maniple::model

#include "world.h"

#include <algorithm>

#include "canonical.h"

namespace maniple::model {
namespace {

constexpr Id kLost = 1u << 31;  // an event of the coordinator: else the number of a message
constexpr Id kFalseAlarm = 1u << 30;
constexpr uint8_t kNoCrash = 255;

template <class... T>
Key key(T... values) {
  const uint64_t words[] = {static_cast<uint64_t>(values)...};
  return fingerprint(words, sizeof words);
}

template <class T>
std::string bytes_of(const T& value) {
  WireEncoder encoder;
  encoder(value);
  return encoder.take();
}

// What the host shows to the observer.
bool is_observed(const MembershipAction& action) {
  if (const auto* to = std::get_if<ToCoordinator>(&action))
    return std::holds_alternative<State>(to->envelope.message);
  return std::holds_alternative<ToPeers>(action) || std::holds_alternative<ApplyUpdate>(action) ||
         std::holds_alternative<Stable>(action) || std::holds_alternative<Leave>(action);
}

}  // namespace

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
  Moment state;
  state.crashes = static_cast<uint8_t>(plan_.crashes);
  state.evictions = static_cast<uint8_t>(plan_.evictions);
  state.coordinator_crashes = static_cast<uint8_t>(plan_.coordinator_crashes);
  state.refusals = static_cast<uint8_t>(plan_.refusals);
  state.observer = put(Observer(config_.layout, plan_.steps));
  for (SliceId s = 0; s < slices_; ++s)
    state.node[s] = put(Node{ModelSlice(config_.layout, slice_configs_[s])});
  const auto each = [&](auto act) {
    for (SliceId s = 0; s < slices_; ++s) act(s);
  };
  Coordinator machine(config_, History{}, 0);
  const auto actions = machine.start(0);
  observe(state, actions, actions.size());
  state.coordinator = put(std::move(machine));
  each([&](SliceId s) { coordinate(state, put({0, 0, s, 0, AgentHello{1, s, 0, false}}), kNoCrash); });
  each([&](SliceId s) { happen(state, s, NodeEvent::kConnected); });
  // Up to the first RUN there is one order of things; the exploration begins where all train.
  for (bool again = true; again;) {
    again = false;
    for (SliceId s = 0; s < slices_ && !again; ++s) {
      again = true;
      if (state.up[s])
        state = after(state, {MoveKind::kTell, static_cast<uint8_t>(s)});
      else if (state.down[s])
        state = after(state, {MoveKind::kHear, static_cast<uint8_t>(s)});
      else if (can_restore(state, s))
        state = after(state, {MoveKind::kRestore, static_cast<uint8_t>(s)});
      else
        again = false;
    }
  }
  return state;
}

void World::moves(const Moment& state, std::vector<Move>& moves) {
  moves.clear();
  const auto coordinated = [&](MoveKind kind, uint8_t s, Id event) {
    moves.push_back({kind, s});
    if (state.coordinator_crashes == 0) return;
    const size_t count = coordinator_step(state.coordinator, event, nullptr).effects.size();
    for (size_t n = 0; n < count; ++n)
      moves.push_back({kind, s, 0, static_cast<uint8_t>(n)});
  };
  for (uint8_t s = 0; s < slices_; ++s) {
    const Node& node = nodes_[state.node[s]];
    if (state.coordinator) {
      if (state.up[s]) coordinated(MoveKind::kTell, s, front(state.up[s]));
      if (node.exit_unreported) coordinated(MoveKind::kReport, s, kLost | s);
      if (state.evictions > 0 && node.alive && is_member(state, s))
        coordinated(MoveKind::kEvict, s, kLost | kFalseAlarm | s);
    }
    for (uint8_t p = 0; p < slices_; ++p) {
      if (!state.to[s][p]) continue;
      moves.push_back({MoveKind::kPrepare, s, p});
      if (!node.alive) moves.push_back({MoveKind::kLosePrepares, s, p});
    }
    if (!node.alive) continue;
    if (state.down[s]) moves.push_back({MoveKind::kHear, s});
    if (node.attempt) moves.push_back({MoveKind::kCompute, s});
    if (node.attempt && state.refusals > 0) moves.push_back({MoveKind::kFail, s});
    if (node.update) moves.push_back({MoveKind::kUpdate, s});
    if (can_restore(state, s)) moves.push_back({MoveKind::kRestore, s});
    if (state.crashes > 0) moves.push_back({MoveKind::kCrash, s});
  }
  if (state.coordinator && state.coordinator_crashes > 0 && !done(state))
    moves.push_back({MoveKind::kCoordinatorCrash});
  if (!state.coordinator) moves.push_back({MoveKind::kCoordinatorStart});
}

Moment World::after(const Moment& before, const Move& move) {
  Moment state = before;
  const SliceId s = move.slice;
  switch (move.kind) {
    case MoveKind::kTell: {
      const Id message = front(state.up[s]);
      state.up[s] = rest(state.up[s]);
      coordinate(state, message, move.actions);
      break;
    }
    case MoveKind::kReport:
      happen(state, s, NodeEvent::kReported);
      coordinate(state, kLost | s, move.actions);
      break;
    case MoveKind::kEvict:
      --state.evictions;
      coordinate(state, kLost | kFalseAlarm | s, move.actions);
      break;
    case MoveKind::kPrepare: {
      const Id prepare = front(state.to[s][move.peer]);
      state.to[s][move.peer] = rest(state.to[s][move.peer]);
      happen(state, move.peer, NodeEvent::kPrepare, prepare);
      break;
    }
    case MoveKind::kLosePrepares:
      state.to[s][move.peer] = 0;
      break;
    case MoveKind::kHear: {
      const Id message = front(state.down[s]);
      state.down[s] = rest(state.down[s]);
      happen(state, s, NodeEvent::kHear, message);
      break;
    }
    case MoveKind::kCompute:
      happen(state, s, NodeEvent::kComputed);
      break;
    case MoveKind::kFail:
      --state.refusals;
      happen(state, s, NodeEvent::kFailed);
      break;
    case MoveKind::kUpdate:
      happen(state, s, NodeEvent::kUpdated);
      break;
    case MoveKind::kRestore:
      happen(state, s, NodeEvent::kRestored);
      break;
    case MoveKind::kCrash:
      --state.crashes;
      happen(state, s, NodeEvent::kCrashed);
      state.down[s] = state.up[s] = 0;
      break;
    case MoveKind::kCoordinatorCrash:
      crash_coordinator(state);
      break;
    case MoveKind::kCoordinatorStart:
      restart_coordinator(state);
      break;
  }
  settle(state);
  return state;
}

std::string World::name(const Moment& state, const Move& move) const {
  const auto first = [&](Id queue) { return message_name(messages_[front(queue)].message); };
  const int s = move.slice;
  const std::string crash =
      move.actions == kNoCrash ? "" : fmt::format(", crash after {} effects", move.actions);
  switch (move.kind) {
    case MoveKind::kTell: return fmt::format("slice {} tells {}{}", s, first(state.up[s]), crash);
    case MoveKind::kReport: return fmt::format("the exit of {} is reported{}", s, crash);
    case MoveKind::kEvict: return fmt::format("slice {} is evicted{}", s, crash);
    case MoveKind::kPrepare: return fmt::format("PREPARE {} -> {}", s, move.peer);
    case MoveKind::kLosePrepares: return fmt::format("PREPARE {} -> {} is lost", s, move.peer);
    case MoveKind::kHear: return fmt::format("slice {} hears {}", s, first(state.down[s]));
    case MoveKind::kCompute: return fmt::format("slice {} has computed", s);
    case MoveKind::kFail: return fmt::format("slice {} has failed", s);
    case MoveKind::kUpdate: return fmt::format("slice {} has updated", s);
    case MoveKind::kRestore: return fmt::format("slice {} has restored", s);
    case MoveKind::kCrash: return fmt::format("slice {} crashes", s);
    case MoveKind::kCoordinatorCrash: return "the coordinator crashes";
    case MoveKind::kCoordinatorStart: return "the coordinator starts";
  }
  return "";
}

bool World::done(const Moment& s) const {
  return s.coordinator && coordinators_[s.coordinator].phase() == CoordinatorPhase::kDone;
}

bool World::all_lost(const Moment& state) const {
  if (!state.coordinator ||
      coordinators_[state.coordinator].phase() != CoordinatorPhase::kPaused)
    return false;
  for (SliceId s = 0; s < slices_; ++s)
    if (nodes_[state.node[s]].alive && is_member(state, s)) return false;
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

// --- Slices --------------------------------------------------------------------------------------

void World::take(Node& node, const MembershipEvent& event, Observer* observer, NodeStep* step) {
  const SliceId s = node.slice.config.slice;
  for (const MembershipAction& action : node.slice.machine.on(event)) {
    step->silent = false;
    step->observed = step->observed || is_observed(action);
    if (observer) observer->see(node.slice, action);
    if (const auto* up = std::get_if<ToCoordinator>(&action)) {
      if (!std::holds_alternative<Rows>(up->envelope.message)) step->up.push_back(put(up->envelope));
    } else if (const auto* peers = std::get_if<ToPeers>(&action)) {
      const Id prepare = put(peers->prepare);
      for (const Member& m : node.slice.machine.decision().members)
        if (m.slice != s) step->to.push_back({m.slice, prepare});
    } else if (const auto* start = std::get_if<StartAttempt>(&action)) {
      node.attempt = *start;
    } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
      node.slice.apply(update->record);
      node.update = update->record.step;
    } else if (std::holds_alternative<Halt>(action)) {
      node.attempt.reset();
      node.restores = false;
    } else if (const auto* restore = std::get_if<Restore>(&action)) {
      node.slice.begin_restore(*restore);
      node.restores = true;
    } else if (std::holds_alternative<DropOldCopies>(action)) {
      node.slice.drop_old_copies(node.slice.machine.decision());
    } else if (std::holds_alternative<Leave>(action)) {
      node.alive = false;
      node.exit_unreported = true;
    }
  }
  if (!plan_.updates_at_once || !node.update) return;
  const Step updated = *node.update;
  node.update.reset();
  take(node, UpdateDone{{updated, row_of(updated)}}, observer, step);
}

void World::run(Node& node, NodeEvent event, Id id, const Moment& state, Observer* observer,
                NodeStep* step) {
  switch (event) {
    case NodeEvent::kHear:
      return take(node, FromCoordinator{messages_[id]}, observer, step);
    case NodeEvent::kPrepare:
      return take(node, FromPeer{prepares_[id]}, observer, step);
    case NodeEvent::kConnected:
      return take(node, Connected{}, observer, step);
    case NodeEvent::kComputed:
    case NodeEvent::kFailed: {
      const StartAttempt a = *node.attempt;
      node.attempt.reset();
      node.slice.keep_gradients(a);
      AttemptReport report = node.slice.report(a.step);
      report.health = event == NodeEvent::kFailed ? Health::kPoisoned : Health::kOk;
      return take(node, AttemptDone{a.epoch, a.step, a.attempt, report}, observer, step);
    }
    case NodeEvent::kUpdated: {
      const Step updated = *node.update;
      node.update.reset();
      return take(node, UpdateDone{{updated, row_of(updated)}}, observer, step);
    }
    case NodeEvent::kRestored: {
      node.restores = false;
      const EpochDecision d = node.slice.machine.decision();
      if (!node.slice.finish_restore(d, [&](const Member& m) { return find(state, m); }))
        throw Violation("restore");
      std::optional<MetricRow> row;
      if (d.record) row = {d.committed, row_of(d.committed)};
      return take(node, RestoreDone{d.number, true, {}, row}, observer, step);
    }
    case NodeEvent::kCrashed:
      node.alive = false;
      node.exit_unreported = true;
      node.attempt.reset();
      node.update.reset();
      node.restores = false;
      step->observed = plan_.canonical;
      return;
    case NodeEvent::kReported:
      node.exit_unreported = !node.exit_unreported;
      return;
  }
}

const World::NodeStep& World::node_step(const Moment& state, SliceId s, NodeEvent event, Id id,
                                        Id* number) {
  const bool reads_others = event == NodeEvent::kRestored;
  const Key memo_key =
      key(state.node[s], event, id, reads_others ? fingerprint(&state.node, sizeof state.node).low : 0);
  Id known = node_memo_[memo_key];
  if (known == 0) {
    Node node = nodes_[state.node[s]];
    NodeStep step;
    run(node, event, id, state, nullptr, &step);
    step.node = put(std::move(node));
    node_steps_.push_back(std::move(step));
    known = static_cast<Id>(node_steps_.size());
    node_memo_[memo_key] = known;
  }
  if (number) *number = known;
  return node_steps_[known - 1];
}

void World::happen(Moment& state, SliceId s, NodeEvent event, Id id) {
  Id number = 0;
  const NodeStep& step = node_step(state, s, event, id, &number);
  if (step.observed) {
    const Key memo_key = key(state.observer, number, 1);
    Id known = observer_memo_[memo_key];
    if (known == 0) {
      Observer observer = observers_[state.observer];
      Node node = nodes_[state.node[s]];
      NodeStep again;
      run(node, event, id, state, &observer, &again);
      if (plan_.canonical && !node.alive) observer.gone(s);
      known = put(std::move(observer));
      observer_memo_[memo_key] = known;
    }
    state.observer = known;
  }
  state.node[s] = step.node;
  if (state.coordinator)
    for (const Id message : step.up) state.up[s] = pushed(state.up[s], message);
  for (const auto& [peer, prepare] : step.to) state.to[s][peer] = pushed(state.to[s][peer], prepare);
}

const ModelSlice* World::find(const Moment& state, const Member& member) const {
  if (member.slice >= slices_) return nullptr;
  const Node& node = nodes_[state.node[member.slice]];
  return node.alive ? &node.slice : nullptr;
}

bool World::can_restore(const Moment& state, SliceId s) const {
  const Node& node = nodes_[state.node[s]];
  if (!node.restores || node.update) return false;
  const EpochDecision& d = node.slice.machine.decision();
  return std::all_of(d.members.begin(), d.members.end(), [&](const Member& m) {
    const ModelSlice* other = find(state, m);
    return other && other->machine.decision().number == d.number;
  });
}

// --- The coordinator -----------------------------------------------------------------------------

CoordinatorEvent World::event_of(Id event) const {
  if (!(event & kLost)) return Received{messages_[event]};
  return SliceLost{event & ~(kLost | kFalseAlarm), 1, event & kFalseAlarm ? "false alarm" : "exit"};
}

// Whether an action matters here: a message to a slice, or something that the observer sees.
bool World::concerns(const CoordinatorAction& action, Effect* effect) {
  if (std::holds_alternative<Note>(action) || std::holds_alternative<Reply>(action)) return false;
  const auto* send = std::get_if<Send>(&action);
  if (!send) {
    const auto* append = std::get_if<Append>(&action);
    const auto* epoch = append ? std::get_if<EpochRecord>(&append->record) : nullptr;
    effect->sees_models = (epoch && epoch->decision.loads_checkpoint()) ||
                          (append && std::holds_alternative<VerdictRecord>(append->record));
    return true;
  }
  const Message& m = send->envelope.message;
  if (std::holds_alternative<Launch>(m) || std::holds_alternative<Kill>(m) ||
      std::holds_alternative<RowsAck>(m) || send->envelope.slice >= slices_)
    return false;
  effect->slice = send->envelope.slice;
  effect->message = put(send->envelope);
  return true;
}

World::CoordinatorStep World::summary(Coordinator& machine,
                                      const std::vector<CoordinatorAction>& actions) {
  CoordinatorStep step;
  for (const CoordinatorAction& action : actions) {
    Effect effect;
    if (concerns(action, &effect)) step.effects.push_back(effect);
  }
  step.coordinator = put(std::move(machine));
  return step;
}

const World::CoordinatorStep& World::coordinator_step(Id coordinator, Id event, Id* number) {
  const Key memo_key = key(coordinator, event);
  Id known = coordinator_memo_[memo_key];
  if (known == 0) {
    Coordinator machine = coordinators_[coordinator];
    const auto actions = machine.on(event_of(event), 0);
    coordinator_steps_.push_back(summary(machine, actions));
    known = static_cast<Id>(coordinator_steps_.size());
    coordinator_memo_[memo_key] = known;
  }
  if (number) *number = known;
  return coordinator_steps_[known - 1];
}

// The coordinator takes an event and crashes after `crash_after` effects.
void World::coordinate(Moment& state, Id event, size_t crash_after) {
  if (event & kLost) state.lost[event & ~(kLost | kFalseAlarm)] = 1;
  Id number = 0;
  const CoordinatorStep& step = coordinator_step(state.coordinator, event, &number);
  const size_t count = std::min(crash_after, step.effects.size());
  const bool observed = std::any_of(step.effects.begin(), step.effects.begin() + count,
                                    [](const Effect& e) { return !e.slice; });
  if (observed) {
    const bool sees_models = std::any_of(step.effects.begin(), step.effects.begin() + count,
                                         [](const Effect& e) { return e.sees_models; });
    const Key memo_key =
        key(state.observer, number, 2, count,
            sees_models ? fingerprint(&state.node, sizeof state.node).low : 0);
    Id known = observer_memo_[memo_key];
    if (known == 0) {
      Coordinator machine = coordinators_[state.coordinator];
      observe(state, machine.on(event_of(event), 0), count);
      observer_memo_[memo_key] = state.observer;
    } else {
      state.observer = known;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const Effect& effect = step.effects[i];
    if (effect.slice && nodes_[state.node[*effect.slice]].alive)
      state.down[*effect.slice] = pushed(state.down[*effect.slice], effect.message);
  }
  state.coordinator = step.coordinator;
  if (crash_after < kNoCrash) crash_coordinator(state);
}

// Shows the observer the actions up to `effects` of those that matter.
void World::observe(Moment& state, const std::vector<CoordinatorAction>& actions, size_t effects) {
  Observer observer = observers_[state.observer];
  std::map<SliceId, const ModelSlice*> models;
  for (SliceId s = 0; s < slices_; ++s) {
    const Node& node = nodes_[state.node[s]];
    if (node.alive || !plan_.canonical) models[s] = &node.slice;
  }
  for (const CoordinatorAction& action : actions) {
    Effect effect;
    if (!concerns(action, &effect)) continue;
    if (effects-- == 0) break;
    if (!effect.slice) observer.see(action, models);
  }
  state.observer = put(std::move(observer));
}

void World::crash_coordinator(Moment& state) {
  --state.coordinator_crashes;
  state.coordinator = 0;
  state.up.fill(0);
  state.lost.fill(0);
}

void World::restart_coordinator(Moment& state) {
  const Observer& observer = observers_[state.observer];
  Coordinator machine(config_, observer.history(),
                      observer.rows().empty() ? 0 : observer.rows().back().step);
  const auto actions = machine.start(0);
  observe(state, actions, actions.size());
  const CoordinatorStep step = summary(machine, actions);
  for (const Effect& effect : step.effects)
    if (effect.slice && nodes_[state.node[*effect.slice]].alive)
      state.down[*effect.slice] = pushed(state.down[*effect.slice], effect.message);
  state.coordinator = step.coordinator;
  for (SliceId s = 0; s < slices_; ++s) {
    const Node& node = nodes_[state.node[s]];
    if (node.alive)
      happen(state, s, NodeEvent::kConnected);
    else if (!node.exit_unreported)
      happen(state, s, NodeEvent::kReported);  // the new one does not know
  }
}

bool World::is_member(const Moment& state, SliceId s) const {
  const History& h = coordinators_[state.coordinator].history();
  return h.epoch && h.epoch->has(s, 1) && !state.lost[s];
}

// What has no other outcome, whenever it happens, happens at once.
void World::settle(Moment& state) {
  // A PREPARE whose delivery makes its receiver do nothing commutes with everything (STOP forgets
  // the votes).
  for (bool again = true; again;) {
    again = false;
    for (SliceId s = 0; s < slices_; ++s)
      for (SliceId p = 0; p < slices_; ++p) {
        if (!state.to[s][p]) continue;
        const Id prepare = front(state.to[s][p]);
        if (nodes_[state.node[p]].alive) {
          const NodeStep& step = node_step(state, p, NodeEvent::kPrepare, prepare, nullptr);
          if (!step.silent) continue;
          state.node[p] = step.node;
        }
        state.to[s][p] = rest(state.to[s][p]);
        again = true;
      }
  }
  if (!plan_.canonical || !state.coordinator) return;
  const History& h = coordinators_[state.coordinator].history();
  for (SliceId s = 0; s < slices_; ++s) {
    const bool member = h.epoch && h.epoch->has(s, 1);
    if (member) continue;
    state.lost[s] = 0;
    // The end of a slice that is no member changes its slot alone.
    if (nodes_[state.node[s]].exit_unreported && !state.up[s]) {
      happen(state, s, NodeEvent::kReported);
      coordinate(state, kLost | s, kNoCrash);
      state.lost[s] = 0;
    }
  }
}

// --- Numbers of parts ----------------------------------------------------------------------------

Id World::put(Node node) {
  if (plan_.canonical) {
    if (!node.alive) {
      // Nobody asks a dead slice.
      const SliceId s = node.slice.config.slice;
      node = Node{ModelSlice(config_.layout, slice_configs_[s]), false, node.exit_unreported};
    }
    Canonical canonical;
    canonical.visit(node.slice.machine);
    auto& kept = node.slice.kept;  // gradients of a step that is settled are never used again
    if (kept && kept->step <= node.slice.machine.committed()) kept.reset();
  }
  WireEncoder encoder;
  encoder(node.slice.config.slice, node);
  return nodes_.put(std::move(node), encoder.bytes());
}

Id World::put(Coordinator machine) {
  if (plan_.canonical) Canonical().visit(machine, plan_.steps);
  const CoordinatorBytes bytes(machine, plan_.canonical);
  return coordinators_.put(std::move(machine), bytes.bytes());
}

Id World::put(Observer observer) {
  if (plan_.canonical) {
    Canonical().visit(observer);
    observer.forget();
  }
  const std::string bytes = bytes_of(observer);
  return observers_.put(std::move(observer), bytes);
}

Id World::put(Envelope message) {
  if (plan_.canonical) Canonical().visit(message);
  const std::string bytes = bytes_of(message);
  return messages_.put(std::move(message), bytes);
}

Id World::put(Prepare prepare) {
  if (plan_.canonical) Canonical().visit(prepare);
  const std::string bytes = bytes_of(prepare);
  return prepares_.put(std::move(prepare), bytes);
}

Id World::put(std::vector<Id> ids) {
  if (ids.empty()) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(Id));
  const std::string copy(bytes);
  Queue queue;
  queue.rest = put(std::vector<Id>(ids.begin() + 1, ids.end()));
  queue.ids = std::move(ids);
  return queues_.put(std::move(queue), copy);
}

Id World::pushed(Id queue, Id id) {
  const Key memo_key = key(queue, id);
  Id known = push_memo_[memo_key];
  if (known == 0) {
    std::vector<Id> ids = queue ? queues_[queue].ids : std::vector<Id>{};
    ids.push_back(id);
    known = put(std::move(ids));
    push_memo_[memo_key] = known;
  }
  return known;
}

}  // namespace maniple::model

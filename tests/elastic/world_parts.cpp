// What the parts of a World do on an event, and their numbers.
#include <algorithm>

#include "canonical.h"
#include "world.h"

namespace maniple::model {
namespace {

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

// --- Slices --------------------------------------------------------------------------------------

void World::take(Node& node, const MembershipEvent& event, Observer* observer, NodeStep* step) {
  const SliceId s = node.slice.config.slice;
  for (const MembershipAction& action : node.slice.machine.on(event)) {
    step->silent = false;
    step->observed = step->observed || is_observed(action);
    if (observer) observer->see(node.slice, action);
    if (const auto* up = std::get_if<ToCoordinator>(&action)) {
      Envelope message = up->envelope;
      auto* answer = std::get_if<State>(&message.message);
      if (answer && broken(Break::kStateLagsBehind)) answer->committed = 0;
      if (!std::holds_alternative<Rows>(message.message)) step->up.push_back(put(message));
    } else if (const auto* peers = std::get_if<ToPeers>(&action)) {
      const Id prepare = put(peers->prepare);
      for (const Member& m : node.slice.machine.decision().members)
        if (m.slice != s) step->to.push_back({m.slice, prepare});
      if (broken(Break::kForgedPrepare)) {
        Prepare forged = peers->prepare;
        forged.slice = (s + 1) % slices_;
        step->to.push_back({(s + 2) % slices_, put(forged)});
      }
    } else if (const auto* start = std::get_if<StartAttempt>(&action)) {
      node.attempt = *start;
    } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
      const bool by_vote = node.slice.machine.status().phase == SlicePhase::kRunning;
      if (by_vote || !broken(Break::kRecordNotApplied)) node.slice.apply(update->record);
      node.update = update->record.step;
    } else if (std::holds_alternative<Halt>(action)) {
      node.attempt.reset();
      node.restores = false;
      if (broken(Break::kGradientsDropped)) node.slice.kept.reset();
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

void World::run(Node& node, NodeEvent event, Id id, const Moment& now, Observer* observer,
                NodeStep* step) {
  switch (event) {
    case NodeEvent::kHear: {
      const Node before = node;
      take(node, FromCoordinator{messages_[id]}, observer, step);
      if (broken(Break::kVoteAfterState) && std::holds_alternative<Stop>(messages_[id].message))
        node = before;
      return;
    }
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
      if ((d.number == 1 || !broken(Break::kReadyWithoutRestore)) &&
          !node.slice.finish_restore(d, [&](const Member& m) { return find(now, m); }))
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

const World::NodeStep& World::node_step(const Moment& now, SliceId s, NodeEvent event, Id id,
                                        Id* number) {
  const bool reads_others = event == NodeEvent::kRestored;
  const Key known_by = memo_key(now.node[s], event, id,
                                reads_others ? fingerprint(&now.node, sizeof now.node).low : 0);
  Id known = node_memo_[known_by];
  if (known == 0) {
    Node node = nodes_[now.node[s]];
    NodeStep step;
    run(node, event, id, now, nullptr, &step);
    step.node = put(std::move(node));
    node_steps_.push_back(std::move(step));
    known = static_cast<Id>(node_steps_.size());
    node_memo_[known_by] = known;
  }
  if (number) *number = known;
  return node_steps_[known - 1];
}

void World::happen(Moment& now, SliceId s, NodeEvent event, Id id) {
  Id number = 0;
  const NodeStep& step = node_step(now, s, event, id, &number);
  if (step.observed) {
    const Key known_by = memo_key(now.observer, number, 1);
    Id known = observer_memo_[known_by];
    if (known == 0) {
      Observer observer = observers_[now.observer];
      Node node = nodes_[now.node[s]];
      NodeStep again;
      run(node, event, id, now, &observer, &again);
      if (plan_.canonical && !node.alive) observer.gone(s);
      known = put(std::move(observer));
      observer_memo_[known_by] = known;
    }
    now.observer = known;
  }
  now.node[s] = step.node;
  if (now.coordinator)
    for (const Id message : step.up) now.up[s] = pushed(now.up[s], message);
  for (const auto& [peer, prepare] : step.to) now.to[s][peer] = pushed(now.to[s][peer], prepare);
}

const ModelSlice* World::find(const Moment& now, const Member& member) const {
  if (member.slice >= slices_) return nullptr;
  const Node& node = nodes_[now.node[member.slice]];
  return node.alive ? &node.slice : nullptr;
}

bool World::can_restore(const Moment& now, SliceId s) const {
  const Node& node = nodes_[now.node[s]];
  if (!node.restores || node.update) return false;
  const EpochDecision& d = node.slice.machine.decision();
  return std::all_of(d.members.begin(), d.members.end(), [&](const Member& m) {
    const ModelSlice* other = find(now, m);
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
  if (std::holds_alternative<Stop>(m) && send->envelope.slice == 0 && broken(Break::kStopLost))
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
  const Key known_by = memo_key(coordinator, event);
  Id known = coordinator_memo_[known_by];
  if (known == 0) {
    Coordinator machine = coordinators_[coordinator];
    const auto actions = machine.on(event_of(event), 0);
    coordinator_steps_.push_back(summary(machine, actions));
    known = static_cast<Id>(coordinator_steps_.size());
    coordinator_memo_[known_by] = known;
  }
  if (number) *number = known;
  return coordinator_steps_[known - 1];
}

// The coordinator takes an event and crashes after `crash_after` effects.
void World::coordinate(Moment& now, Id event, size_t crash_after) {
  if (event & kLost) now.lost[event & ~(kLost | kFalseAlarm)] = 1;
  Id number = 0;
  const CoordinatorStep& step = coordinator_step(now.coordinator, event, &number);
  const size_t count = std::min(crash_after, step.effects.size());
  const bool observed = std::any_of(step.effects.begin(), step.effects.begin() + count,
                                    [](const Effect& e) { return !e.slice; });
  const bool forgotten = crash_after < kNoCrash && broken(Break::kLogAfterSend);
  if (observed && !forgotten) {
    const bool sees_models = std::any_of(step.effects.begin(), step.effects.begin() + count,
                                         [](const Effect& e) { return e.sees_models; });
    const Key known_by = memo_key(now.observer, number, 2, count,
                                  sees_models ? fingerprint(&now.node, sizeof now.node).low : 0);
    Id known = observer_memo_[known_by];
    if (known == 0) {
      Coordinator machine = coordinators_[now.coordinator];
      observe(now, machine.on(event_of(event), 0), count);
      observer_memo_[known_by] = now.observer;
    } else {
      now.observer = known;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const Effect& effect = step.effects[i];
    if (effect.slice && nodes_[now.node[*effect.slice]].alive)
      now.down[*effect.slice] = pushed(now.down[*effect.slice], effect.message);
  }
  now.coordinator = step.coordinator;
  if (crash_after < kNoCrash) crash_coordinator(now);
}

// Shows the observer the actions up to `effects` of those that matter.
void World::observe(Moment& now, const std::vector<CoordinatorAction>& actions, size_t effects) {
  Observer observer = observers_[now.observer];
  std::map<SliceId, const ModelSlice*> models;
  for (SliceId s = 0; s < slices_; ++s) {
    const Node& node = nodes_[now.node[s]];
    if (node.alive || !plan_.canonical) models[s] = &node.slice;
  }
  for (const CoordinatorAction& action : actions) {
    Effect effect;
    if (!concerns(action, &effect)) continue;
    if (effects-- == 0) break;
    if (!effect.slice) observer.see(action, models);
  }
  now.observer = put(std::move(observer));
}

void World::crash_coordinator(Moment& now) {
  --now.coordinator_crashes;
  now.coordinator = 0;
  now.up.fill(0);
  now.lost.fill(0);
}

void World::restart_coordinator(Moment& now) {
  const Observer& observer = observers_[now.observer];
  Coordinator machine(config_, observer.history(),
                      observer.rows().empty() ? 0 : observer.rows().back().step);
  const auto actions = machine.start(0);
  observe(now, actions, actions.size());
  const CoordinatorStep step = summary(machine, actions);
  for (const Effect& effect : step.effects)
    if (effect.slice && nodes_[now.node[*effect.slice]].alive)
      now.down[*effect.slice] = pushed(now.down[*effect.slice], effect.message);
  now.coordinator = step.coordinator;
  for (SliceId s = 0; s < slices_; ++s) {
    const Node& node = nodes_[now.node[s]];
    if (node.alive)
      happen(now, s, NodeEvent::kConnected);
    else if (!node.exit_unreported)
      happen(now, s, NodeEvent::kReported);  // the new one does not know
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
  const Key known_by = memo_key(queue, id);
  Id known = push_memo_[known_by];
  if (known == 0) {
    std::vector<Id> ids = queue ? queues_[queue].ids : std::vector<Id>{};
    ids.push_back(id);
    known = put(std::move(ids));
    push_memo_[known_by] = known;
  }
  return known;
}

}  // namespace maniple::model

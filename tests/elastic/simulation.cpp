#include "simulation.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <queue>

#include "core/random.h"
#include "model.h"

namespace maniple::model {
namespace {

constexpr Time kMs = kMillisecond;

class Simulation {
 public:
  explicit Simulation(const HistoryPlan& plan) : plan_(plan) {
    config_.slices = 2 + below(3);
    config_.spares = below(2);
    config_.min_slices = 1 + below(2);
    config_.last_step = 20 + below(80);
    config_.layout.num_blocks = 1 + below(12);
    config_.layout.redundancy = std::array{Redundancy::kShadow, Redundancy::kShadow,
                                           Redundancy::kReplicated, Redundancy::kNone}[below(4)];
    config_.max_restarts = 8;
    config_.verify_after = below(2) ? 0 : below(30);
    config_.timeouts = Timeouts(kSecond);
    observer_ = Observer(config_.layout, config_.last_step);
    if (plan_.faults) {
      loss_ = below(3) ? 0 : below(80);
      link_loss_ = below(3) ? 0 : below(10);
      twice_ = below(100);
      refusals_ = below(3) ? 0 : below(40);
      one_host_each_ = below(2);
    }
    nodes_.resize(config_.num_slots());
  }

  HistoryResult run() {
    start_coordinator();
    for (SliceId s = 0; s < nodes_.size(); ++s) start_agent(s);
    every(config_.timeouts.lease() / 10, [this] { to_coordinator(Tick{}); });
    const Time calm = plan_.faults ? 6 * kSecond : 0;
    if (plan_.faults) plan_faults(calm);
    at(calm, [this] { calm_down(); });
    while (!over()) {
      if (now_ > calm + 2000 * kSecond)
        throw Violation("the job stands still:\n" +
                        (coordinator_ ? coordinator_->status_text() : "no coordinator\n"));
      Entry next = queue_.top();
      queue_.pop();
      now_ = next.time;
      next.what();
    }
    return finish();
  }

 private:
  struct Entry {
    Time time;
    uint64_t number;
    std::function<void()> what;
    bool operator<(const Entry& other) const {
      return time != other.time ? time > other.time : number > other.number;
    }
  };
  struct Node {          // a slot's host: its agent and the slice that it runs
    uint64_t agent = 0;  // 0: dead
    Life life = 0;
    bool alive = false;  // the slice's processes
    int32_t code = 0;
    Time frozen_until = 0, cut_until = 0;
    bool hangs = false;
    uint64_t progress = 0;
    std::optional<StartAttempt> attempt{};  // under way
    std::optional<ModelSlice> slice{};      // of `life`, also after its death
  };

  // --- Chance and time ---
  uint64_t draw() { return mix64(plan_.seed * kGolden + ++draws_ * 0x632be59bd9b4e019ull); }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(draw() % n); }
  bool chance(uint32_t per_thousand) { return below(1000) < per_thousand; }
  Time between(Time low, Time high) {
    return low + static_cast<Time>(draw() % static_cast<uint64_t>(high - low + 1));
  }
  void at(Time time, std::function<void()> what) {
    queue_.push({std::max(time, now_), ++entries_, std::move(what)});
  }
  void in(Time delay, std::function<void()> what) { at(now_ + delay, std::move(what)); }
  void every(Time period, const std::function<void()>& what) {
    what();
    in(period, [this, period, what] { every(period, what); });
  }

  void trace(const std::string& text) const {
    if (plan_.trace) fmt::print("{:9.3f} {}\n", static_cast<double>(now_) / kSecond, text);
  }

  // --- The coordinator and its shell ---
  void start_coordinator() {
    History history;
    for (const LogRecord& record : observer_.log()) history.apply(record);
    coordinator_.emplace(config_, history,
                         observer_.rows().empty() ? 0 : observer_.rows().back().step);
    ++starts_;
    perform(coordinator_->start(now_));
    if (on_disk_ > 0) to_coordinator(CheckpointPublished{on_disk_});
    for (SliceId s = 0; s < nodes_.size(); ++s)
      in(between(kMs, 50 * kMs), [this, s] {
        hello(s);
        to_slice(s, nodes_[s].life, Connected{});
      });
  }

  void crash_coordinator() {
    if (!coordinator_) return;
    trace("the coordinator crashes");
    coordinator_.reset();
    inbox_.clear();
    crash_in_ = -1;
    in(between(10 * kMs, 2 * kSecond), [this] { start_coordinator(); });
  }

  void to_coordinator(const CoordinatorEvent& event) {
    if (!coordinator_) return;
    if (now_ < coordinator_frozen_until_) {
      if (!std::holds_alternative<Tick>(event)) inbox_.push_back(event);
      return;
    }
    while (!inbox_.empty() && coordinator_) {
      const CoordinatorEvent first = inbox_.front();
      inbox_.pop_front();
      perform(coordinator_->on(first, now_));
    }
    if (coordinator_) perform(coordinator_->on(event, now_));
  }

  void perform(const std::vector<CoordinatorAction>& actions) {
    for (const CoordinatorAction& action : actions) {
      if (crash_in_ >= 0 && crash_in_-- == 0) return crash_coordinator();
      observer_.see(action, models());
      if (const auto* note = std::get_if<Note>(&action)) trace(note->event + ": " + note->text);
      if (const auto* send = std::get_if<Send>(&action)) {
        deliver(send->envelope);
      } else if (const auto* drop = std::get_if<DropRows>(&action)) {
        on_disk_ = std::min(on_disk_, drop->after);
      } else if (const auto* publish = std::get_if<PublishCheckpoint>(&action)) {
        in(between(kMs, 30 * kMs), [this, step = publish->step] {
          on_disk_ = std::max(on_disk_, step);
          to_coordinator(CheckpointPublished{step});
        });
      }
    }
    History history;
    for (const LogRecord& record : observer_.log()) history.apply(record);
    if (++checks_ % 64 == 0 && encode(history) != encode(coordinator_->history()))
      throw Violation("the log does not add up to the coordinator's state");
  }

  std::map<SliceId, const ModelSlice*> models() {
    std::map<SliceId, const ModelSlice*> result;
    for (SliceId s = 0; s < nodes_.size(); ++s)
      if (nodes_[s].slice) result[s] = &*nodes_[s].slice;
    return result;
  }

  // --- The network ---
  bool lost(SliceId s) { return now_ < nodes_[s].cut_until || chance(loss_); }
  Time delay() { return chance(20) ? between(kMs, 300 * kMs) : between(100, 3 * kMs); }

  void deliver(const Envelope& envelope) {
    for (int copies = chance(twice_) ? 2 : 1; copies > 0; --copies)
      if (!lost(envelope.slice)) in(delay(), [this, envelope] { arrive(envelope); });
  }
  void arrive(const Envelope& e) {
    Node& node = nodes_[e.slice];
    if (std::holds_alternative<Launch>(e.message)) {
      if (node.agent && e.life > node.life) launch(e.slice, e.life);
    } else if (std::holds_alternative<Kill>(e.message)) {
      if (node.agent && e.life == node.life) end_slice(e.slice, 137);
    } else {
      to_slice(e.slice, e.life, FromCoordinator{e});
    }
  }
  void send_up(const Envelope& envelope) {
    const SliceId s = envelope.slice;
    for (int copies = chance(twice_) ? 2 : 1; copies > 0; --copies)
      if (!lost(s)) in(delay(), [this, envelope] { to_coordinator(Received{envelope}); });
  }
  void send_to_peer(SliceId from, const Member& to, const Prepare& prepare) {
    if (chance(link_loss_)) {
      if (chance(200)) return;  // silently
      const EpochNumber epoch = prepare.epoch;
      in(delay(), [this, from, to, epoch] {
        to_slice(to.slice, to.life, LinkBroken{epoch, from});
      });
      const Life life = nodes_[from].life;
      if (chance(500))
        in(delay(), [this, from, life, to, epoch] {
          to_slice(from, life, LinkBroken{epoch, to.slice});
        });
      return;
    }
    for (int copies = chance(twice_) ? 2 : 1; copies > 0; --copies)
      in(delay(), [this, to, prepare] { to_slice(to.slice, to.life, FromPeer{prepare}); });
  }

  // --- Agents ---
  void start_agent(SliceId s) {
    nodes_[s].agent = ++agents_;
    nodes_[s].life = 0;
    agent_loop(s, nodes_[s].agent);
  }
  void agent_loop(SliceId s, uint64_t agent) {
    Node& node = nodes_[s];
    if (node.agent != agent) return;
    if (!node.alive) {
      hello(s);
    } else if (now_ >= node.frozen_until) {
      if (!node.hangs && !waits(s)) ++node.progress;
      Beat beat{node.slice->machine.status(), {node.progress, waits(s)}};
      send_up({0, beat.status.epoch, s, node.life, beat});
    }
    in(config_.timeouts.lease() / 8, [this, s, agent] { agent_loop(s, agent); });
  }
  // Whom the slice waits for: in the vote its machine knows, in Restore the first that is not
  // there.
  std::optional<SliceId> waits(SliceId s) {
    const Membership& machine = nodes_[s].slice->machine;
    if (machine.status().phase == SlicePhase::kRestoring)
      for (const Member& m : machine.decision().members)
        if (!find(m) || find(m)->machine.decision().number != machine.decision().number)
          return m.slice;
    return machine.waits_for();
  }
  void hello(SliceId s) {
    const Node& node = nodes_[s];
    if (node.agent)
      send_up({0, 0, s, node.life, AgentHello{node.agent, host(s), node.life, node.alive}});
  }
  uint64_t host(SliceId s) const { return one_host_each_ ? s : s / 2; }

  void launch(SliceId s, Life life) {
    Node& node = nodes_[s];
    Node fresh;
    fresh.agent = node.agent;
    fresh.life = life;
    fresh.alive = true;
    fresh.cut_until = node.cut_until;
    node = fresh;
    MembershipConfig config;
    config.slice = s;
    config.life = life;
    config.last_step = config_.last_step;
    config.registration =
        Register{{1, 2}, config_.config_hash, host(s), fmt::format("host{}:1", host(s))};
    node.slice.emplace(config_.layout, config);
    in(between(50 * kMs, 300 * kMs), [this, s, life] { to_slice(s, life, Connected{}); });
  }
  // The processes are gone; peers see reset links, the agent reports.
  void end_slice(SliceId s, int32_t code) {
    Node& node = nodes_[s];
    if (!node.alive) return;
    node.alive = false;
    node.code = code;
    if (node.agent && chance(500)) send_up({0, 0, s, node.life, Dying{"a process died"}});
    if (node.agent) send_up({0, 0, s, node.life, Exited{code, {}}});
    const EpochNumber epoch = node.slice->machine.decision().number;
    for (const Member& m : node.slice->machine.decision().members)
      if (m.slice != s && chance(900))
        in(between(kMs, 20 * kMs), [this, m, s, epoch] {
          to_slice(m.slice, m.life, LinkBroken{epoch, s});
        });
  }

  // --- Slices ---
  const ModelSlice* find(const Member& m) {
    const Node& node = nodes_[m.slice];
    return node.alive && node.life == m.life && now_ >= node.frozen_until ? &*node.slice : nullptr;
  }
  void to_slice(SliceId s, Life life, const MembershipEvent& event) {
    Node& node = nodes_[s];
    if (!node.alive || node.life != life) return;
    if (now_ < node.frozen_until)
      return at(node.frozen_until + between(0, kMs),
                [this, s, life, event] { to_slice(s, life, event); });
    for (const MembershipAction& action : node.slice->machine.on(event)) {
      if (plan_.trace) trace_slice(s, action);
      observer_.see(*node.slice, action);
      carry_out(s, life, action);
    }
  }

  void trace_slice(SliceId s, const MembershipAction& action) const {
    if (const auto* up = std::get_if<ToCoordinator>(&action)) {
      trace(fmt::format("slice {} -> {} of epoch {}", s, message_name(up->envelope.message),
                        up->envelope.epoch));
    } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
      trace(fmt::format("slice {} commits {}", s, update->record.step));
    } else if (const auto* restore = std::get_if<Restore>(&action)) {
      trace(fmt::format("slice {} restores epoch {} at step {}{}", s, restore->decision.number,
                        restore->decision.committed, restore->fresh ? " afresh" : ""));
    }
  }
  void carry_out(SliceId s, Life life, const MembershipAction& action) {
    Node& node = nodes_[s];
    ModelSlice& slice = *node.slice;
    if (const auto* up = std::get_if<ToCoordinator>(&action)) {
      send_up(up->envelope);
    } else if (const auto* peers = std::get_if<ToPeers>(&action)) {
      for (const Member& m : slice.machine.decision().members)
        if (m.slice != s) send_to_peer(s, m, peers->prepare);
    } else if (const auto* start = std::get_if<StartAttempt>(&action)) {
      node.attempt = *start;
      ++node.progress;
      in(between(20 * kMs, 60 * kMs), [this, s, life, a = *start] { attempt_done(s, life, a); });
    } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
      slice.apply(update->record);
      ++node.progress;
      const Step step = update->record.step;
      in(between(kMs, 15 * kMs), [this, s, life, step] {
        to_slice(s, life, UpdateDone{{step, row_of(step)}});
      });
      if (step % 4 == 0 && slice.machine.status().phase == SlicePhase::kRunning) {
        const CheckpointPart part{step, slice.machine.decision().number, "part"};
        in(between(10 * kMs, 200 * kMs),
           [this, s, life, part] { to_slice(s, life, PartWritten{part}); });
      }
    } else if (std::holds_alternative<Halt>(action)) {
      node.attempt.reset();
    } else if (const auto* restore = std::get_if<Restore>(&action)) {
      slice.begin_restore(*restore);
      in(between(kMs, 30 * kMs), [this, s, life, r = *restore] { try_restore(s, life, r); });
    } else if (const auto* drop = std::get_if<DropOldCopies>(&action)) {
      slice.drop_old_copies(slice.machine.decision());
      if (drop->epoch != slice.machine.decision().number) throw Violation("RUN of another epoch");
    } else if (const auto* leave = std::get_if<Leave>(&action)) {
      end_slice(s, leave->code);
    }
  }

  void attempt_done(SliceId s, Life life, const StartAttempt& attempt) {
    Node& node = nodes_[s];
    const bool current = node.attempt && node.attempt->epoch == attempt.epoch &&
                         node.attempt->step == attempt.step &&
                         node.attempt->attempt == attempt.attempt;
    if (!node.alive || node.life != life || node.hangs || !current) return;
    if (now_ < node.frozen_until)
      return at(node.frozen_until, [this, s, life, attempt] { attempt_done(s, life, attempt); });
    AttemptReport report = node.slice->report(attempt.step);
    if (chance(refusals_)) report.health = chance(500) ? Health::kPoisoned : Health::kSuspect;
    node.slice->keep_gradients(attempt);
    node.attempt.reset();
    to_slice(s, life, AttemptDone{attempt.epoch, attempt.step, attempt.attempt, report});
  }

  void try_restore(SliceId s, Life life, const Restore& restore) {
    Node& node = nodes_[s];
    const EpochNumber epoch = restore.decision.number;
    const auto current = [&] {
      return node.alive && node.life == life && node.slice->machine.decision().number == epoch &&
             node.slice->machine.status().phase == SlicePhase::kRestoring;
    };
    if (!current()) return;
    if (plan_.faults && chance(refusals_ / 10))
      return to_slice(s, life, RestoreDone{epoch, false, "a copy differs", {}});
    if (now_ < node.frozen_until || node.hangs ||
        !node.slice->finish_restore(restore.decision,
                                    [this](const Member& m) { return find(m); })) {
      in(20 * kMs, [this, s, life, restore] { try_restore(s, life, restore); });
      return;
    }
    ++node.progress;
    std::optional<MetricRow> row;
    if (restore.decision.record)
      row = {restore.decision.committed, row_of(restore.decision.committed)};
    to_slice(s, life, RestoreDone{epoch, true, {}, row});
  }

  // --- Faults ---
  void plan_faults(Time until) {
    for (uint32_t n = below(12); n > 0; --n) at(between(0, until), [this] { fault(); });
  }
  void fault() {
    ++faults_;
    const SliceId s = below(static_cast<uint32_t>(nodes_.size()));
    Node& node = nodes_[s];
    const auto operate = [&](Command command, uint32_t argument) {
      to_coordinator(OperatorRequest{{1, command, argument}});
    };
    const uint32_t kind = below(15);
    trace(fmt::format("fault {} at slice {} life {}", kind, s, node.life));
    switch (kind) {
      case 0:
      case 1:
        return end_slice(s, 139);
      case 2:  // the host: agent and slice
        node.agent = 0;
        end_slice(s, 137);
        return in(between(100 * kMs, 4 * kSecond), [this, s] {
          if (!nodes_[s].agent) start_agent(s);
        });
      case 3:
      case 4:
        node.frozen_until = now_ + between(100 * kMs, 3 * kSecond);
        return;
      case 5:  // the coordinator is told of a death that did not happen
        if (chance(500)) return to_coordinator(SliceDying{s, node.life, "false alarm"});
        return to_coordinator(SliceLost{s, node.life, "false alarm"});
      case 6:
        node.cut_until = now_ + between(100 * kMs, 3 * kSecond);
        return;
      case 7:
        node.hangs = true;
        return;
      case 8:
        return crash_coordinator();
      case 9:
      case 10:  // at any of the next actions, between log and send for instance
        crash_in_ = below(12);
        return;
      case 11:
        coordinator_frozen_until_ = now_ + between(100 * kMs, 3 * kSecond);
        return;
      case 12:
        operate(below(2) ? Command::kPause : Command::kDrain, s);
        return in(between(100 * kMs, 2 * kSecond), [this, s] {
          to_coordinator(OperatorRequest{{2, Command::kResume, 0}});
          to_coordinator(OperatorRequest{{3, Command::kReadmit, s}});
        });
      case 13:  // a replay finds that this slice computes wrongly
        return blame(s);
      default:
        return operate(Command::kScale, 1 + below(config_.num_slots()));
    }
  }
  // As another member would say it.
  void blame(SliceId s) {
    if (!coordinator_ || !coordinator_->history().epoch) return;
    const History& history = coordinator_->history();
    for (const Member& m : history.epoch->members)
      if (m.slice != s && history.epoch->index_of(s) >= 0)
        return to_coordinator(Received{{history.incarnation, history.number(), m.slice, m.life,
                                        SdcFinding{history.committed, "defect", "", {}, {s}, true}}});
  }
  // From now on nothing bad happens any more, so the job must come to its end.
  void calm_down() {
    loss_ = link_loss_ = refusals_ = 0;
    calm_ = true;
    every(5 * kSecond, [this] {
      to_coordinator(OperatorRequest{{9, Command::kResume, 0}});
      for (SliceId s = 0; s < nodes_.size() && coordinator_; ++s) {
        const auto slot = coordinator_->history().slots.find(s);
        if (slot != coordinator_->history().slots.end() && slot->second.drained &&
            !slot->second.banned)
          to_coordinator(OperatorRequest{{10, Command::kReadmit, s}});
      }
    });
  }

  bool over() const {
    return calm_ && coordinator_ && now_ >= coordinator_frozen_until_ &&
           (coordinator_->phase() == CoordinatorPhase::kDone || coordinator_->phase() == CoordinatorPhase::kFailed);
  }
  HistoryResult finish() {
    HistoryResult result;
    result.done = coordinator_->phase() == CoordinatorPhase::kDone;
    const History& history = coordinator_->history();
    const auto banned = std::count_if(history.slots.begin(), history.slots.end(),
                                      [](const auto& slot) { return slot.second.banned; });
    if (!result.done && config_.num_slots() - banned >= config_.min_slices)
      throw Violation("failed without need: " + history.verdict->reason);
    if (result.done &&
        (observer_.rows().empty() || observer_.rows().back().step != config_.last_step))
      throw Violation(fmt::format("done, but {} rows of {} are written", observer_.rows().size(),
                                  config_.last_step));
    result.epochs = history.number();
    result.rollbacks = observer_.num_rollbacks();
    result.commits = observer_.num_commits();
    result.faults = faults_;
    result.coordinator_starts = starts_;
    result.seconds = static_cast<double>(now_) / kSecond;
    return result;
  }

  HistoryPlan plan_;
  CoordinatorConfig config_;
  Observer observer_;
  std::optional<Coordinator> coordinator_;
  std::deque<CoordinatorEvent> inbox_;
  std::vector<Node> nodes_;
  std::priority_queue<Entry> queue_;
  Time now_ = 0, coordinator_frozen_until_ = 0;
  uint64_t draws_ = 0, entries_ = 0, agents_ = 0, faults_ = 0, starts_ = 0, checks_ = 0;
  uint32_t loss_ = 0, link_loss_ = 0, twice_ = 0, refusals_ = 0;  // per thousand
  bool one_host_each_ = true, calm_ = false;
  int crash_in_ = -1;  // actions until the coordinator crashes
  Step on_disk_ = 0;   // newest published checkpoint
};

}  // namespace

HistoryResult run_history(const HistoryPlan& plan) { return Simulation(plan).run(); }

}  // namespace maniple::model

#include "exploration.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <deque>
#include <functional>

#include "model.h"

namespace maniple::model {
namespace {

// A set of hashes with open addressing; 0 is not a member.
class HashSet {
 public:
  bool insert(uint64_t hash) {
    hash += hash == 0;
    if (2 * (size_ + 1) > table_.size()) grow();
    return put(hash);
  }
  uint64_t size() const { return size_; }

 private:
  bool put(uint64_t hash) {
    size_t at = hash & (table_.size() - 1);
    while (table_[at] != 0 && table_[at] != hash) at = (at + 1) & (table_.size() - 1);
    if (table_[at] == hash) return false;
    table_[at] = hash;
    ++size_;
    return true;
  }
  void grow() {
    std::vector<uint64_t> old(table_.size() * 2, 0);
    old.swap(table_);
    size_ = 0;
    for (const uint64_t hash : old)
      if (hash) put(hash);
  }
  std::vector<uint64_t> table_ = std::vector<uint64_t>(1 << 16, 0);
  uint64_t size_ = 0;
};

struct Node {
  ModelSlice slice;
  bool alive = true;
  bool exit_unreported = false;
  std::optional<StartAttempt> attempt{};
  std::optional<Step> update{};
  std::optional<EpochDecision> restore{};
  std::vector<Envelope> down{}, up{};              // to and from the coordinator
  std::map<SliceId, std::vector<Prepare>> to{};  // to peers
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.slice, s.alive, s.exit_unreported, s.attempt.has_value(), s.update, s.restore.has_value(),
      s.down, s.up, s.to);
    if (s.attempt) f(s.attempt->epoch, s.attempt->step, s.attempt->attempt);
  }
};

class World {
 public:
  explicit World(const ExplorationPlan& plan)
      : plan_(plan),
        crashes_(plan.crashes),
        evictions_(plan.evictions),
        coordinator_crashes_(plan.coordinator_crashes),
        refusals_(plan.refusals) {
    config_.slices = plan.slices;
    config_.last_step = plan.steps;
    config_.layout.num_blocks = plan.slices;
    observer_ = Observer(config_.layout, plan.steps);
    coordinator_.emplace(config_, History{}, 0);
    perform(coordinator_->start(0), -1);
    for (SliceId s = 0; s < plan.slices; ++s) {
      MembershipConfig config;
      config.slice = s;
      config.life = 1;
      config.last_step = plan.steps;
      config.registration.host = s;
      nodes_.emplace_back().slice = ModelSlice(config_.layout, config);
    }
    for (SliceId s = 0; s < plan.slices; ++s)
      coordinate(Received{{0, 0, s, 0, AgentHello{1, s, 0, false}}}, -1);
    for (SliceId s = 0; s < plan.slices; ++s) to_slice(s, Connected{});
    // Up to the first RUN there is one order of things; it begins where all train.
    while (deliver_one_up_or_down() || finish_one_restore()) {
    }
  }

  // Calls `visit(name, next)` for every move.
  template <class Visit>
  void moves(Visit visit) const {
    const auto move = [&](const std::string& name, auto act) {
      World next = *this;
      try {
        act(next);
        next.deliver_idle_prepares();
      } catch (const std::exception& e) {
        throw Violation(fmt::format("{}\n  by {}", e.what(), name));
      }
      visit(name, next);
    };
    const auto coordinated = [&](const std::string& name, auto prepare,
                                 const CoordinatorEvent& event) {
      move(name, [&](World& w) {
        prepare(w);
        w.coordinate(event, -1);
      });
      if (coordinator_crashes_ == 0) return;
      World probe = *this;  // how many actions there are to crash between
      const size_t count = probe.coordinator_->on(event, 0).size();
      for (size_t n = 0; n < count; ++n)
        move(fmt::format("{}, crash after {} actions", name, n), [&](World& w) {
          prepare(w);
          w.coordinate(event, static_cast<int>(n));
        });
    };
    for (SliceId s = 0; s < nodes_.size(); ++s) {
      const Node& node = nodes_[s];
      if (coordinator_ && !node.up.empty())
        coordinated(
            fmt::format("slice {} tells {}", s, message_name(node.up.front().message)),
            [s](World& w) { w.nodes_[s].up.erase(w.nodes_[s].up.begin()); },
            Received{node.up.front()});
      if (coordinator_ && node.exit_unreported)
        coordinated(
            fmt::format("the exit of {} is reported", s),
            [s](World& w) { w.nodes_[s].exit_unreported = false; }, SliceLost{s, 1, "exit"});
      if (coordinator_ && evictions_ > 0 && node.alive && is_member(s))
        coordinated(
            fmt::format("slice {} is evicted", s), [](World& w) { --w.evictions_; },
            SliceLost{s, 1, "false alarm"});
      for (const auto& [peer, channel] : node.to) {
        if (channel.empty()) continue;
        move(fmt::format("PREPARE {} -> {}", s, peer),
             [s, peer = peer](World& w) { w.deliver_prepare(s, peer); });
        if (!node.alive)
          move(fmt::format("PREPARE {} -> {} is lost", s, peer),
               [s, peer = peer](World& w) { w.nodes_[s].to[peer].clear(); });
      }
      if (!node.alive) continue;
      if (!node.down.empty())
        move(fmt::format("slice {} hears {}", s, message_name(node.down.front().message)),
             [s](World& w) { w.deliver_down(s); });
      if (node.attempt) {
        move(fmt::format("slice {} has computed", s),
             [s](World& w) { w.finish_attempt(s, Health::kOk); });
        if (refusals_ > 0)
          move(fmt::format("slice {} has failed", s), [s](World& w) {
            --w.refusals_;
            w.finish_attempt(s, Health::kPoisoned);
          });
      }
      if (node.update)
        move(fmt::format("slice {} has updated", s), [s](World& w) { w.finish_update(s); });
      if (node.restore && can_restore(s))
        move(fmt::format("slice {} has restored", s), [s](World& w) { w.finish_restore(s); });
      if (crashes_ > 0) move(fmt::format("slice {} crashes", s), [s](World& w) { w.crash(s); });
    }
    if (coordinator_ && coordinator_crashes_ > 0 && !done())
      move("the coordinator crashes", [](World& w) { w.crash_coordinator(); });
    if (!coordinator_) move("the coordinator starts", [](World& w) { w.restart_coordinator(); });
  }

  bool done() const { return coordinator_ && coordinator_->phase() == CoordinatorPhase::kDone; }
  // Nobody is left, and nothing is launched here again.
  bool all_lost() const {
    if (!coordinator_ || coordinator_->phase() != CoordinatorPhase::kPaused) return false;
    for (SliceId s = 0; s < nodes_.size(); ++s)
      if (nodes_[s].alive && is_member(s)) return false;
    return true;
  }
  std::string status() const {
    return coordinator_ ? coordinator_->status_text() : "no coordinator\n";
  }
  uint64_t rollbacks() const { return observer_.num_rollbacks(); }

  uint64_t hash() const {
    WireEncoder encoder;
    encoder(coordinator_, nodes_, observer_, crashes_, evictions_, coordinator_crashes_, refusals_);
    return XXH3_64bits(encoder.bytes().data(), encoder.bytes().size());
  }

  void deliver_idle_prepares() {
    for (bool again = true; again;) {
      again = false;
      for (SliceId s = 0; s < nodes_.size(); ++s)
        for (auto& [peer, channel] : nodes_[s].to) {
          if (channel.empty()) continue;
          Membership copy = nodes_[peer].slice.machine;
          if (nodes_[peer].alive && !copy.on(FromPeer{channel.front()}).empty()) continue;
          nodes_[peer].slice.machine = copy;
          channel.erase(channel.begin());
          again = true;
        }
    }
  }

 private:
  bool is_member(SliceId s) const {
    const History& h = coordinator_->history();
    return h.epoch && h.epoch->has(s, 1) && !lost_.contains(s);
  }

  // The coordinator takes an event and crashes after `crash_after` actions (-1: not).
  void coordinate(const CoordinatorEvent& event, int crash_after) {
    if (const auto* lost = std::get_if<SliceLost>(&event)) lost_.insert(lost->slice);
    perform(coordinator_->on(event, 0), crash_after);
  }
  void perform(const std::vector<CoordinatorAction>& actions, int crash_after) {
    std::map<SliceId, const ModelSlice*> models;
    for (SliceId s = 0; s < nodes_.size(); ++s) models[s] = &nodes_[s].slice;
    for (const CoordinatorAction& action : actions) {
      if (crash_after-- == 0) return crash_coordinator();
      observer_.see(action, models);
      const auto* send = std::get_if<Send>(&action);
      if (!send || nodes_.size() <= send->envelope.slice) continue;
      const Message& m = send->envelope.message;
      const bool for_agent = std::holds_alternative<Launch>(m) || std::holds_alternative<Kill>(m);
      if (for_agent || std::holds_alternative<RowsAck>(m)) continue;
      Node& node = nodes_[send->envelope.slice];
      if (node.alive) node.down.push_back(send->envelope);
    }
  }
  void crash_coordinator() {
    --coordinator_crashes_;
    coordinator_.reset();
    for (Node& node : nodes_) node.up.clear();
  }
  void restart_coordinator() {
    History history;
    for (const LogRecord& record : observer_.log()) history.apply(record);
    coordinator_.emplace(config_, history,
                         observer_.rows().empty() ? 0 : observer_.rows().back().step);
    lost_.clear();
    perform(coordinator_->start(0), -1);
    for (SliceId s = 0; s < nodes_.size(); ++s) {
      if (nodes_[s].alive) to_slice(s, Connected{});
      nodes_[s].exit_unreported = !nodes_[s].alive;
    }
  }
  void crash(SliceId s) {
    --crashes_;
    Node& node = nodes_[s];
    node.alive = false;
    node.exit_unreported = true;
    node.down.clear();
    node.up.clear();
    node.attempt.reset();
    node.update.reset();
    node.restore.reset();
  }

  void to_slice(SliceId s, const MembershipEvent& event) {
    Node& node = nodes_[s];
    if (!node.alive) return;
    for (const MembershipAction& action : node.slice.machine.on(event)) {
      observer_.see(node.slice, action);
      if (const auto* up = std::get_if<ToCoordinator>(&action)) {
        if (coordinator_ && !std::holds_alternative<Rows>(up->envelope.message))
          node.up.push_back(up->envelope);
      } else if (const auto* peers = std::get_if<ToPeers>(&action)) {
        for (const Member& m : node.slice.machine.decision().members)
          if (m.slice != s) node.to[m.slice].push_back(peers->prepare);
      } else if (const auto* start = std::get_if<StartAttempt>(&action)) {
        node.attempt = *start;
      } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
        node.slice.apply(update->record);
        node.update = update->record.step;
      } else if (std::holds_alternative<Halt>(action)) {
        node.attempt.reset();
        node.restore.reset();
      } else if (const auto* restore = std::get_if<Restore>(&action)) {
        node.slice.begin_restore(*restore);
        node.restore = restore->decision;
      } else if (std::holds_alternative<DropOldCopies>(action)) {
        node.slice.drop_old_copies(node.slice.machine.decision());
      } else if (std::holds_alternative<Leave>(action)) {
        node.alive = false;
        node.exit_unreported = true;
      }
    }
    if (plan_.updates_at_once && node.update) finish_update(s);
  }
  void deliver_down(SliceId s) {
    const Envelope e = nodes_[s].down.front();
    nodes_[s].down.erase(nodes_[s].down.begin());
    to_slice(s, FromCoordinator{e});
  }
  void deliver_prepare(SliceId s, SliceId peer) {
    const Prepare p = nodes_[s].to[peer].front();
    nodes_[s].to[peer].erase(nodes_[s].to[peer].begin());
    to_slice(peer, FromPeer{p});
  }
  void finish_attempt(SliceId s, Health health) {
    const StartAttempt a = *nodes_[s].attempt;
    nodes_[s].attempt.reset();
    nodes_[s].slice.keep_gradients(a);
    AttemptReport report = nodes_[s].slice.report(a.step);
    report.health = health;
    to_slice(s, AttemptDone{a.epoch, a.step, a.attempt, report});
  }
  void finish_update(SliceId s) {
    const Step step = *nodes_[s].update;
    nodes_[s].update.reset();
    to_slice(s, UpdateDone{{step, row_of(step)}});
  }
  const ModelSlice* find(const Member& m) const {
    return m.slice < nodes_.size() && nodes_[m.slice].alive ? &nodes_[m.slice].slice : nullptr;
  }
  bool can_restore(SliceId s) const {
    for (const Member& m : nodes_[s].restore->members)
      if (!find(m) || find(m)->machine.decision().number != nodes_[s].restore->number) return false;
    return !nodes_[s].update;
  }
  void finish_restore(SliceId s) {
    const EpochDecision d = *nodes_[s].restore;
    nodes_[s].restore.reset();
    if (!nodes_[s].slice.finish_restore(d, [this](const Member& m) { return find(m); }))
      throw Violation("restore");
    std::optional<MetricRow> row;
    if (d.record) row = {d.committed, row_of(d.committed)};
    to_slice(s, RestoreDone{d.number, true, {}, row});
  }
  bool deliver_one_up_or_down() {
    for (SliceId s = 0; s < nodes_.size(); ++s) {
      if (!nodes_[s].up.empty()) {
        const Envelope e = nodes_[s].up.front();
        nodes_[s].up.erase(nodes_[s].up.begin());
        coordinate(Received{e}, -1);
        return true;
      }
      if (!nodes_[s].down.empty()) {
        deliver_down(s);
        return true;
      }
    }
    return false;
  }
  bool finish_one_restore() {
    for (SliceId s = 0; s < nodes_.size(); ++s)
      if (nodes_[s].restore && can_restore(s)) {
        finish_restore(s);
        return true;
      }
    return false;
  }

  ExplorationPlan plan_;
  CoordinatorConfig config_;
  std::optional<Coordinator> coordinator_;
  std::vector<Node> nodes_;
  std::set<SliceId> lost_;  // what this coordinator was told
  Observer observer_;
  int crashes_, evictions_, coordinator_crashes_, refusals_;
};

class Explorer {
 public:
  explicit Explorer(const ExplorationPlan& plan) { visit(World(plan), 1); }
  ExplorationResult result;

 private:
  void visit(const World& world, uint64_t depth) {
    if (!visited_.insert(world.hash())) return;
    result.states = visited_.size();
    result.deepest = std::max(result.deepest, depth);
    result.rollbacks += world.rollbacks() > 0;
    if (world.done()) {
      ++result.ends;
      return;
    }
    uint64_t moves = 0;
    world.moves([&](const std::string& name, const World& next) {
      ++moves;
      try {
        visit(next, depth + 1);
      } catch (const Violation& violation) {
        const std::string text = violation.what();
        throw Violation(text.size() > 8000 ? text : fmt::format("{}\n  after {}", text, name));
      }
    });
    result.moves += moves;
    if (moves == 0 && world.all_lost()) ++result.ends;
    if (moves == 0 && !world.all_lost())
      throw Violation("nothing moves any more:\n" + world.status());
  }
  HashSet visited_;
};

}  // namespace

ExplorationResult explore(const ExplorationPlan& plan) { return Explorer(plan).result; }

}  // namespace maniple::model

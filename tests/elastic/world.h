// One moment of a small elastic job, and what can happen next. A Moment names its parts by number
// (interning.h): the coordinator, each slice with its model, the messages on each connection and
// what the observer knows. What a part does on an event is computed once, by the real state
// machines.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "exploration.h"
#include "interning.h"
#include "model.h"

namespace maniple::model {

constexpr size_t kMostSlices = 4;

struct Moment {
  Id coordinator = 0;  // 0: it has crashed
  Id observer = 0;
  std::array<Id, kMostSlices> node{};
  std::array<Id, kMostSlices> down{}, up{};                   // queues from and to the coordinator
  std::array<std::array<Id, kMostSlices>, kMostSlices> to{};  // of PREPAREs, from and to a slice
  std::array<uint8_t, kMostSlices> lost{};                    // this coordinator was told
  uint8_t crashes = 0, evictions = 0, coordinator_crashes = 0, refusals = 0;  // that may still come
};

enum class MoveKind : uint8_t {
  kTell,    // the coordinator hears the next message of a slice
  kReport,  // or of a slice's end
  kEvict,   // or, wrongly, of a slice's end
  kPrepare,
  kLosePrepares,
  kLoseOrders,  // what the coordinator sent before it crashed
  kHear,        // a slice hears the next message of the coordinator
  kCompute,
  kFail,
  kUpdate,
  kRestore,
  kCrash,
  kCoordinatorCrash,
  kCoordinatorStart,
};
struct Move {
  MoveKind kind;
  uint8_t slice = 0, peer = 0;
  uint8_t actions = 255;  // after which the coordinator crashes; 255: it does not
};

class World {
 public:
  explicit World(const ExplorationPlan& plan);

  Moment first();
  void moves(const Moment& now, std::vector<Move>& moves);
  // Throws Violation when an invariant breaks.
  Moment after(const Moment& now, const Move& move);
  std::string name(const Moment& now, const Move& move) const;

  bool done(const Moment& s) const;
  bool all_lost(const Moment& s) const;  // and nothing is launched here again
  bool rolled_back(const Moment& s) const { return observers_[s.observer].num_rollbacks() > 0; }
  std::string status(const Moment& s) const;
  std::string sizes() const;  // how many parts there are, for people

 private:
  // Events of the coordinator: the number of a message, or the slice whose end is reported.
  static constexpr Id kLost = 1u << 31, kFalseAlarm = 1u << 30;
  static constexpr size_t kNoCrash = 255;

  struct Node {
    ModelSlice slice;
    bool alive = true;
    bool exit_unreported = false;
    std::optional<StartAttempt> attempt{};
    std::optional<Step> update{};
    bool restores = false;
    template <class Self, class F>
    static void fields(Self& s, F&& f) {
      f(s.slice, s.alive, s.exit_unreported, s.attempt.has_value(), s.update, s.restores);
      if (s.attempt) f(s.attempt->epoch, s.attempt->step, s.attempt->attempt);
    }
  };
  struct Queue {
    std::vector<Id> ids;
    Id rest = 0;  // without the first
  };
  enum class NodeEvent : uint8_t {
    kHear,
    kPrepare,
    kConnected,
    kComputed,
    kFailed,
    kUpdated,
    kRestored,
    kCrashed,
    kReported,
  };
  struct NodeStep {
    Id node = 0;
    std::vector<Id> up;
    std::vector<std::pair<SliceId, Id>> to;
    bool silent = true;
    bool observed = false;
  };
  struct Effect {
    std::optional<SliceId> slice;  // a message to it; else something that the observer sees
    Id message = 0;
    bool sees_models = false;
  };
  struct CoordinatorStep {
    Id coordinator = 0;
    std::vector<Effect> effects;
  };

  // What a slice does.
  void run(Node& node, NodeEvent event, Id id, const Moment& now, Observer* observer,
           NodeStep* step);
  void take(Node& node, const MembershipEvent& event, Observer* observer, NodeStep* step);
  const NodeStep& node_step(const Moment& now, SliceId s, NodeEvent event, Id id, Id* number);
  void happen(Moment& now, SliceId s, NodeEvent event, Id id = 0);
  bool can_restore(const Moment& now, SliceId s) const;
  const ModelSlice* find(const Moment& now, const Member& member) const;

  // What the coordinator does.
  CoordinatorEvent event_of(Id event) const;
  const CoordinatorStep& coordinator_step(Id coordinator, Id event, Id* number);
  CoordinatorStep summary(Coordinator& machine, const std::vector<CoordinatorAction>& actions);
  bool concerns(const CoordinatorAction& action, Effect* effect);
  void coordinate(Moment& now, Id event, size_t crash_after);
  void observe(Moment& now, const std::vector<CoordinatorAction>& actions, size_t effects);
  void crash_coordinator(Moment& now);
  void restart_coordinator(Moment& now);

  bool broken(Break rule) const { return plan_.broken == rule; }
  void settle(Moment& now);
  bool is_member(const Moment& now, SliceId s) const;

  Id put(Node node);
  Id put(Coordinator machine);
  Id put(Observer observer);
  Id put(Envelope message);
  Id put(Prepare prepare);
  Id put(std::vector<Id> ids);
  Id pushed(Id queue, Id id);
  Id front(Id queue) const { return queues_[queue].ids.front(); }
  Id rest(Id queue) const { return queues_[queue].rest; }

  ExplorationPlan plan_;
  SliceId slices_;
  CoordinatorConfig config_;
  std::vector<MembershipConfig> slice_configs_;
  Pool<Node> nodes_;
  Pool<Coordinator> coordinators_;
  Pool<Observer> observers_;
  Pool<Envelope> messages_;
  Pool<Prepare> prepares_;
  Pool<Queue> queues_;
  std::deque<NodeStep> node_steps_;
  std::deque<CoordinatorStep> coordinator_steps_;
  Memo node_memo_, coordinator_memo_, observer_memo_, restart_memo_, push_memo_;
};

}  // namespace maniple::model

// A rank of a stand-in slice: the leader trains, the others only count.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <thread>

#include "elastic/reshard.h"
#include "job.h"
#include "launch/clock.h"
#include "launch/slice_control.h"
#include "links/link_set.h"
#include "links/move_operation.h"
#include "metrics/jsonl_sink.h"

namespace maniple::standin {
namespace {

template <class T>
std::span<const uint8_t> bytes_of(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}
template <class T>
std::span<uint8_t> room_of(T& value) {
  return {reinterpret_cast<uint8_t*>(&value), sizeof value};
}

class Leader {
 public:
  Leader(const Settings& settings, const RankControl::Config& line)
      : settings_(settings),
        line_(line),
        listener_(progress_, line.address, 0, line.token),
        history_(settings.run_dir + "/history", std::ios::app) {
    MembershipConfig membership;
    membership.last_step = settings.steps;
    membership.registration =
        Register{{1, 2}, 7, line.slice, fmt::format("{}:{}", line.address, listener_.port())};
    SliceControl::Events events;
    events.halt = [this](EpochNumber epoch) { halt(epoch); };
    events.waits_for = [this]() -> std::optional<SliceId> {
      std::lock_guard lock(mutex_);
      const auto owing = links_ ? links_->waiting_for() : std::vector<int>();
      if (owing.empty()) return std::nullopt;
      return static_cast<SliceId>(owing.front());
    };
    control_ = std::make_unique<SliceControl>(line, membership, events);
  }

  int run() {
    for (;;) {
      const auto action = control_->next(kSecond);
      if (!action) continue;
      if (const auto* leave = std::get_if<Leave>(&*action)) {
        control_->line().leave(leave->code);
        return leave->code;
      }
      std::visit([this](const auto& a) { perform(a); }, *action);
      control_->line().progress({step_, 0, 0, 0});
    }
  }

 private:
  template <class T>
  void perform(const T&) {}

  // One write per line: several processes share the file.
  void note(const std::string& text) {
    std::lock_guard lock(mutex_);
    history_ << fmt::format("{} {} {} {}\n", monotonic_now(), line_.slice, line_.life, text)
             << std::flush;
  }

  void halt(EpochNumber epoch) {
    note(fmt::format("halt {}", epoch));
    std::lock_guard lock(mutex_);
    halted_ = std::max(halted_, epoch);
    if (links_ && decision_.number <= epoch) links_->shutdown("STOP");
  }
  bool halted() {
    std::lock_guard lock(mutex_);
    return halted_ >= decision_.number;
  }

  // The same bytes to all; from each its own.
  template <class T>
  std::vector<T> gather(const T& mine) {
    std::vector<T> all(decision_.members.size());
    std::vector<std::span<const uint8_t>> send(all.size(), bytes_of(mine));
    std::vector<std::span<uint8_t>> receive;
    for (T& one : all) receive.push_back(room_of(one));
    const auto me = static_cast<size_t>(links_->self());
    send[me] = {};
    receive[me] = {};
    const auto operation = std::make_shared<MoveOperation>(links_->self(), send, receive);
    links_->start(operation);
    links_->wait(*operation, 600);
    all[me] = mine;
    return all;
  }

  void perform(const StartAttempt& start) {
    step_ = start.step;
    std::this_thread::sleep_for(std::chrono::microseconds(settings_.step_time));  // the work
    const auto members = static_cast<int>(decision_.members.size());
    const int me = decision_.index_of(line_.slice);
    AttemptReport report;
    report.tokens = kUnits * (me + 1) / members - kUnits * me / members;
    uint64_t sum = 0;
    for (int unit = kUnits * me / members; unit < kUnits * (me + 1) / members; ++unit)
      sum += unit_gradient(value_, start.step, unit);
    try {
      links_->begin_attempt(static_cast<uint64_t>(start.step), start.attempt);
      uint64_t total = 0;
      for (const uint64_t part : gather(sum)) total += part;
      kept_step_ = start.step;
      kept_sum_ = total;
    } catch (const CommError&) {
      report.health = Health::kPoisoned;
    }
    control_->on(AttemptDone{start.epoch, start.step, start.attempt, report});
  }

  void perform(const ToPeers& to) {
    struct Fixed {
      std::array<char, 256> bytes = {};
    } mine;
    const std::string encoded = encode(to.prepare);
    std::copy(encoded.begin(), encoded.end(), mine.bytes.begin());
    try {
      for (const Fixed& one : gather(mine)) {
        Prepare prepare;
        if (decode(std::string_view(one.bytes.data(), encoded.size()), prepare) &&
            prepare.slice != line_.slice)
          control_->on(FromPeer{prepare});
      }
    } catch (const CommError&) {
      // STOP is on its way.
    }
  }

  void perform(const ApplyUpdate& update) {
    const Step step = update.record.step;
    if (state_step_ == step - 1 && kept_step_ == step) {
      value_ = updated(value_, kept_sum_);
      state_step_ = step;
    }
    note(fmt::format("commit {}", step));
    control_->on(UpdateDone{row()});
  }

  MetricRow row() const {
    return {state_step_, to_json_line({{"step", state_step_}, {"loss", loss_of(value_)}})};
  }

  void perform(const Restore& restore) {
    {
      std::lock_guard lock(mutex_);
      links_.reset();
      decision_ = restore.decision;
    }
    const EpochDecision& d = decision_;
    if (restore.fresh) state_step_ = -1;
    if (d.loads_checkpoint()) {
      state_step_ = 0;
      value_ = initial_value();
    }
    LinkConfig config;
    config.token = line_.token;
    config.incarnation = d.incarnation;
    config.epoch = d.number;
    config.build = "standin";
    config.self = d.index_of(line_.slice);
    config.connect_s = static_cast<double>(line_.timeouts.connect()) / kSecond;
    config.on_broken = [this, epoch = d.number](int slice, const std::string&) {
      control_->on(LinkBroken{epoch, static_cast<SliceId>(slice)});
    };
    for (size_t m = 0; m < d.members.size(); ++m) {
      const std::string& address = d.addresses[m];
      const size_t colon = address.find(':');
      config.members.push_back({static_cast<int>(d.members[m].slice), address.substr(0, colon),
                                static_cast<uint16_t>(std::stoi(address.substr(colon + 1)))});
    }
    while (!halted()) {
      auto links = std::make_unique<LinkSet>(progress_, listener_, config);
      LinkSet* open = links.get();
      {
        std::lock_guard lock(mutex_);
        links_ = std::move(links);
        if (halted_ >= d.number) links_->shutdown("STOP");
      }
      try {
        open->connect();
        copy_state();
        note(fmt::format("restored {}", d.number));
        return control_->on(
            RestoreDone{d.number, true, {}, state_step_ ? std::optional(row()) : std::nullopt});
      } catch (const CommError&) {
        // Not everybody is there yet, or STOP comes.
      }
      std::lock_guard lock(mutex_);
      links_.reset();
    }
  }

  // Block 0, the only one: from its donors to those who lack it.
  void copy_state() {
    const EpochDecision& d = decision_;
    links_->begin_attempt(static_cast<uint64_t>(d.committed), 1000000);
    const uint64_t mine = value_;
    std::vector<std::span<const uint8_t>> send(d.members.size());
    std::vector<std::span<uint8_t>> receive(d.members.size());
    for (const BlockCopy& copy : plan_copies({1, Redundancy::kReplicated}, d)) {
      if (copy.from == links_->self()) send[static_cast<size_t>(copy.to)] = bytes_of(mine);
      if (copy.to == links_->self()) receive[static_cast<size_t>(copy.from)] = room_of(value_);
    }
    const auto operation = std::make_shared<MoveOperation>(links_->self(), send, receive, true);
    links_->start(operation);
    links_->wait(*operation, 600);
    state_step_ = d.committed;
  }

  const Settings settings_;
  const RankControl::Config line_;
  Progress progress_;
  LinkListener listener_;
  std::ofstream history_;
  std::mutex mutex_;  // of what halt() touches
  EpochNumber halted_ = 0;
  EpochDecision decision_;
  std::unique_ptr<LinkSet> links_;
  Step step_ = 0, state_step_ = -1, kept_step_ = -1;
  uint64_t value_ = 0, kept_sum_ = 0;
  std::unique_ptr<SliceControl> control_;
};

int follow(const RankControl::Config& line) {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<int> code;
  RankControl::Events events;
  events.message = [&](const Envelope& envelope) {
    const auto* verdict = std::get_if<Verdict>(&envelope.message);
    if (!verdict) return;
    std::lock_guard lock(mutex);
    code = verdict->code;
    changed.notify_all();
  };
  RankControl control(line, events);
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, std::chrono::milliseconds(5), [&] { return code.has_value(); }))
    control.progress({});
  control.leave(*code);
  return *code;
}

}  // namespace

int run_rank(const Settings& settings, uint32_t position) {
  const auto line = RankControl::from_environment(position);
  if (!line) return 64;
  const int code = position == 0 ? Leader(settings, *line).run() : follow(*line);
  ::_exit(code);
}

}  // namespace maniple::standin

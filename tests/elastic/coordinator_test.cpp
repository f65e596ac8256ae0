// The coordinator by itself: every event in every phase, and the rules about time.
#include "elastic/coordinator.h"

#include <gtest/gtest.h>

#include <functional>

namespace maniple {
namespace {

// Two members and a spare, driven by hand.
class Job {
 public:
  explicit Job(const CoordinatorConfig& config = Job::config(), Step rows = 0) : coordinator_(config, {}, rows) {
    coordinator_.start(0);
    for (SliceId s = 0; s < 3; ++s) say(s, AgentHello{1, s, 0, false});
  }
  static CoordinatorConfig config() {
    CoordinatorConfig c;
    c.slices = 2;
    c.spares = 1;
    c.last_step = 100;
    c.layout.num_blocks = 4;
    c.probation = 50;
    return c;
  }

  static bool wants_burn_in(const Message& message) {
    const auto* launch = std::get_if<Launch>(&message);
    return launch && launch->burn_in;
  }
  void put(const CoordinatorEvent& event) {
    for (const CoordinatorAction& a : coordinator_.on(event, now_)) {
      if (const auto* note = std::get_if<Note>(&a)) notes_ += note->event + ";";
      if (const auto* send = std::get_if<Send>(&a))
        sent_ += fmt::format("{}:{}{};", message_name(send->envelope.message), send->envelope.slice,
                             wants_burn_in(send->envelope.message) ? " with burn-in" : "");
    }
  }
  void say(SliceId s, const Message& m, EpochNumber back = 0, Life life = 1) {
    put(Received{{1, number() - back, s, life, m}});
  }
  void enroll(SliceId s) { say(s, Register{{1, 1}, 0, s, "a"}); }
  void both(const Message& m) {
    say(0, m);
    say(1, m);
  }
  void operate(Command c, uint32_t argument = 0) { put(OperatorRequest{{1, c, argument}}); }
  // `time` passes in ticks; the slices of `beating` are heard of all the while.
  void pass(Time time, std::initializer_list<SliceId> beating) {
    for (const Time end = now_ + time; now_ < end;) {
      now_ += config().timeouts.tick();
      for (const SliceId s : beating)
        say(s, CheckpointPart{0, 0, ""}, 0, coordinator_.history().slots.at(s).life);
      put(Tick{});
    }
  }
  // Members train and others wait until the phase changes, for this long at most.
  void train(Time time, char until) {
    uint64_t count = 0;
    for (const Time end = now_ + time; now_ < end && phase() != until; jump(kLease / 5), ++count)
      for (const auto& [s, slot] : coordinator_.history().slots) {
        const bool member = coordinator_.history().epoch->has(s, slot.life);
        say(s, Beat{{member ? SlicePhase::kRunning : SlicePhase::kWaiting, member ? number() : 0, 3}, {count, {}}},
            0, slot.life);
      }
  }
  void jump(Time time) {
    now_ += time;
    put(Tick{});
  }
  State state(Step committed = 3) const {
    State s;
    s.lineage = coordinator_.history().epoch->lineage;
    s.committed = committed;
    s.record = DecisionRecord{committed, Outcome::kCommit, {Prepare{}}};
    s.holds = {number()};
    return s;
  }
  // F R S C T(restoring) P N(finishing) D X(failed)
  static Job in(char phase) {
    Job job;
    job.enroll(0);
    if (phase == 'F') return job;
    if (phase == 'X') {
      for (SliceId s = 0; s < 3; ++s) job.say(s, Exited{78, {}});
      return job;
    }
    job.enroll(1);
    job.enroll(2);
    if (phase == 'T') return job;
    job.both(Ready{});
    if (phase == 'S' || phase == 'P') job.operate(Command::kPause);
    if (phase == 'P') job.both(job.state());
    if (phase == 'C') job.say(0, BrokenLink{1});
    if (phase == 'N' || phase == 'D') job.say(0, Finished{});
    if (phase == 'D') job.say(1, Finished{});
    return job;
  }
  char phase() const { return "FRSCTPNDX"[static_cast<size_t>(coordinator_.phase())]; }
  EpochNumber number() const { return coordinator_.history().number(); }
  const Coordinator& coordinator() const { return coordinator_; }
  const std::string& notes() const { return notes_; }
  std::string take_sent() { return std::exchange(sent_, {}); }

 private:
  Coordinator coordinator_;
  static constexpr Time kLease = 2 * kSecond;
  Time now_ = 0;
  std::string notes_, sent_;
};

constexpr std::string_view kPhases = "FRSCTPNDX";
constexpr Time kLease = 2 * kSecond;

struct Case {
  const char* name;
  std::function<void(Job&)> event;
  std::string_view next;  // by phase, in the order of kPhases
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"Tick", [](Job& j) { j.put(Tick{}); }, "FRSCTPNDX"},
      {"Beat, training",
       [](Job& j) {
         j.say(0, Beat{{SlicePhase::kRunning, j.number(), 3}, {5, {}}});
       },
       "FRSCRPNDX"},
      {"Beat, stopped",
       [](Job& j) {
         j.say(0, Beat{{SlicePhase::kStopped, j.number(), 3}, {5, {}}});
       },
       "FCSCCPCDX"},
      {"Beat of an earlier epoch",
       [](Job& j) {
         j.say(0, Beat{{SlicePhase::kStopped, j.number() - 1, 3}, {5, {}}});
       },
       "FRSCTPNDX"},
      {"Dying, a member", [](Job& j) { j.say(0, Dying{"why"}); }, "FCCCCPCDX"},
      {"Dying, the spare", [](Job& j) { j.say(2, Dying{"why"}); }, "FRSCTPNDX"},
      {"Dying, an earlier life", [](Job& j) { j.say(0, Dying{"why"}, 0, 0); }, "FRSCTPNDX"},
      {"Exited, a member", [](Job& j) { j.say(0, Exited{139, {}}); }, "FCCCCPCDX"},
      {"Exited, the spare", [](Job& j) { j.say(2, Exited{139, {}}); }, "FRSCTPNDX"},
      {"Exited, an earlier life", [](Job& j) { j.say(0, Exited{139, {}}, 0, 0); }, "FRSCTPNDX"},
      {"SliceDying",
       [](Job& j) {
         j.put(SliceDying{0, 1, "host"});
       },
       "FCCCCPCDX"},
      {"SliceLost",
       [](Job& j) {
         j.put(SliceLost{0, 1, "host"});
       },
       "FCCCCPCDX"},
      {"SliceLost, another life",
       [](Job& j) {
         j.put(SliceLost{0, 2, "host"});
       },
       "FRSCTPNDX"},
      {"AgentHello without the slice",
       [](Job& j) {
         j.say(0, AgentHello{2, 0, 0, false});
       },
       "FCCCCPCDX"},
      {"AgentHello with the slice",
       [](Job& j) {
         j.say(0, AgentHello{2, 0, 1, true});
       },
       "FRSCTPNDX"},
      {"State of one", [](Job& j) { j.say(0, j.state()); }, "FCCCCPCDX"},
      {"State of both", [](Job& j) { j.both(j.state()); }, "FTPTTPTDX"},
      {"State of an earlier epoch", [](Job& j) { j.say(0, j.state(), 1); }, "FRSCTPNDX"},
      {"Ready of one", [](Job& j) { j.say(0, Ready{}); }, "FRSCTPNDX"},
      {"Ready of both", [](Job& j) { j.both(Ready{}); }, "FRSCRPNDX"},
      {"Ready, cannot",
       [](Job& j) {
         j.say(0, Ready{false, "disk", {}});
       },
       "FRSCCPNDX"},
      {"Ready of an earlier epoch", [](Job& j) { j.say(0, Ready{}, 1), j.say(1, Ready{}, 1); },
       "FRSCTPNDX"},
      {"BrokenLink", [](Job& j) { j.say(0, BrokenLink{1}); }, "FCCCCPCDX"},
      {"BrokenLink to no member", [](Job& j) { j.say(0, BrokenLink{2}); }, "FRSCTPNDX"},
      {"Rows",
       [](Job& j) {
         j.say(0, Rows{{{1, "row"}}});
       },
       "FRSCTPNDX"},
      {"Finished of one", [](Job& j) { j.say(0, Finished{}); }, "FNSCNPNDX"},
      {"Finished of both", [](Job& j) { j.both(Finished{}); }, "FDSCDPDDX"},
      {"CheckpointPart",
       [](Job& j) {
         j.say(0, CheckpointPart{3, j.number(), ""});
       },
       "FRSCTPNDX"},
      {"Register, the second slice", [](Job& j) { j.enroll(1); }, "TRSCTPNDX"},
      {"Register, another config",
       [](Job& j) {
         j.say(2, Register{{1, 1}, 9, 2, "a"});
       },
       "FRSCTPNDX"},
      {"Register, another build",
       [](Job& j) {
         j.say(2, Register{{1, 2}, 0, 2, "a"});
       },
       "FRSCTPNDX"},
      {"CheckpointPublished", [](Job& j) { j.put(CheckpointPublished{1}); }, "FRSCTPNDX"},
      {"pause", [](Job& j) { j.operate(Command::kPause); }, "FSSCTPNDX"},
      {"resume", [](Job& j) { j.operate(Command::kResume); }, "FRSCTTNDX"},
      {"drain", [](Job& j) { j.operate(Command::kDrain, 1); }, "FSSCTPNDX"},
      {"scale", [](Job& j) { j.operate(Command::kScale, 1); }, "TSSCTPNDX"},
      {"readmit", [](Job& j) { j.operate(Command::kReadmit, 1); }, "FRSCTPNDX"},
      {"status", [](Job& j) { j.operate(Command::kStatus); }, "FRSCTPNDX"},
      {"a lost lease",
       [](Job& j) {
         j.pass(kLease + kSecond, {1, 2});
       },
       "FCCCCPCDX"},
      {"a late loop", [](Job& j) { j.jump(20 * kLease); }, "FRSCTPNDX"},
  };
  return all;
}

TEST(Coordinator, EveryEventInEveryPhaseLeadsWhereItShould) {
  for (const Case& c : cases())
    for (size_t p = 0; p < kPhases.size(); ++p) {
      Job job = Job::in(kPhases[p]);
      ASSERT_EQ(job.phase(), kPhases[p]);
      c.event(job);
      EXPECT_EQ(job.phase(), c.next[p]) << c.name << " in " << kPhases[p] << "\n" << job.notes();
    }
}

TEST(Coordinator, ARestartFromTheLogKeepsTheHistory) {
  for (const char p : kPhases) {
    const Job job = Job::in(p);
    Coordinator again(Job::config(), job.coordinator().history(), 0);
    again.start(0);
    History expected = job.coordinator().history();
    expected.apply(StartedRecord{expected.incarnation + 1});
    EXPECT_EQ(encode(again.history()), encode(expected)) << p;
  }
}

// As in seed 69278 of the simulation, where the survivor's BrokenLink was lost as well.
TEST(Coordinator, ARestartMissesAMemberWhoseSlotHasBegunAnotherLife) {
  for (const char p : {'T', 'R'}) {
    Job job = Job::in(p);
    job.say(1, Exited{137, {}});
    job.pass(kLease, {0, 2});
    ASSERT_EQ(job.coordinator().history().slots.at(1).life, 2u);
    Coordinator again(Job::config(), job.coordinator().history(), 0);
    std::string sent;
    for (const CoordinatorAction& action : again.start(0))
      if (const auto* send = std::get_if<Send>(&action))
        sent += fmt::format("{}:{};", message_name(send->envelope.message), send->envelope.slice);
    EXPECT_EQ(sent, "Stop:0;") << p;
    EXPECT_EQ(again.phase(), CoordinatorPhase::kCollecting) << p;
  }
}

TEST(Coordinator, AStoppedLoopTakesNobodysLease) {
  Job job = Job::in('R');
  job.jump(3 * kLease);
  job.pass(kLease / 2, {0, 1, 2});
  EXPECT_EQ(job.phase(), 'R');
}

TEST(Coordinator, AnUnplannedLossTakesTheSpareAtOnce) {
  Job job = Job::in('R');
  job.take_sent();
  job.say(0, Exited{137, {}});
  EXPECT_EQ(job.take_sent(), "Stop:1;");
  job.say(1, job.state());
  ASSERT_EQ(job.phase(), 'T');
  const EpochDecision& d = *job.coordinator().history().epoch;
  EXPECT_EQ(d.committed, 3);
  EXPECT_TRUE(d.has(1, 1) && d.has(2, 1));
  EXPECT_FALSE(d.loads_checkpoint());
}

TEST(Coordinator, OwnerAndShadowLostTogetherGoBackToTheCheckpoint) {
  Job job = Job::in('R');
  job.say(0, Rows{{{1, "a"}, {2, "b"}}});
  job.put(CheckpointPublished{2});
  job.say(0, Exited{137, {}});
  job.say(1, Exited{137, {}});
  EXPECT_EQ(job.phase(), 'P');  // the spare alone does not go on at once
  job.pass(Job::config().timeouts.forming() + kLease, {2});
  ASSERT_EQ(job.phase(), 'T');
  EXPECT_TRUE(job.coordinator().history().epoch->loads_checkpoint());
  EXPECT_EQ(job.coordinator().history().committed, 2);
}

TEST(Coordinator, CheckpointThatTheJobBeginsWithMayBeUnverified) {
  CoordinatorConfig config = Job::config();
  config.first = 10;
  config.first_verified = 4;
  config.verify_after = 8;
  Job job(config, 10);
  EXPECT_EQ(job.coordinator().history().published, 10);
  EXPECT_EQ(job.coordinator().history().verified, 4);
  for (const SliceId s : {0, 1, 2}) job.enroll(s);
  EXPECT_EQ(job.coordinator().history().epoch->committed, 10);
  job.both(Ready{});
  job.say(0, SdcFinding{11, "defect", "slice 1 computes wrongly", {}, {1}, true});
  job.say(0, job.state(11));
  EXPECT_EQ(job.coordinator().history().epoch->committed, 4);
}

TEST(Coordinator, SlotThatAnEarlierJobQuarantinedIsBurntIn) {
  CoordinatorConfig config = Job::config();
  config.burn_in = {1};
  Job job(config);
  const std::string sent = job.take_sent();
  EXPECT_NE(sent.find("Launch:0;"), std::string::npos) << sent;
  EXPECT_NE(sent.find("Launch:1 with burn-in;"), std::string::npos) << sent;
  // Restarted from any beginning of its log it orders the same.
  for (const size_t kept : {0, 1, 2, 3}) {
    History history;
    const std::vector<LogRecord> records = {
        StartedRecord{1}, SlotRecord{1, true, false, static_cast<int32_t>(ExitCode::kUnhealthy), ""},
        SlotRecord{1, false, false, static_cast<int32_t>(ExitCode::kUnhealthy), ""}};
    for (size_t i = 0; i < kept; ++i) history.apply(records[i]);
    Coordinator again(config, history, 0);
    again.start(0);
    EXPECT_TRUE(again.history().slots.at(1).burn_in && !again.history().slots.at(1).banned) << kept;
  }
}

TEST(Coordinator, WrongResultsInAnEarlierJobCount) {
  CoordinatorConfig config = Job::config();
  config.max_strikes = 3;
  config.strikes = {{1, 2}};
  Job job(config);
  const auto strikes = [&] { return job.coordinator().history().slots.at(1).strikes; };
  EXPECT_EQ(strikes(), 2u);
  EXPECT_FALSE(job.coordinator().history().slots.at(1).banned);
  // Restarted after any part of what it has logged of them.
  for (const size_t kept : {0, 1, 2}) {
    History history;
    history.apply(StartedRecord{1});
    for (size_t i = 0; i < kept; ++i) history.apply(StrikeRecord{1, ""});
    Coordinator again(config, history, 0);
    again.start(0);
    EXPECT_EQ(again.history().slots.at(1).strikes, 2u) << kept;
  }
  for (const SliceId s : {0, 1, 2}) job.enroll(s);
  job.both(Ready{});
  job.say(0, SdcFinding{1, "transient", "slice 1 contradicts itself", {1}, {}, false});
  EXPECT_EQ(strikes(), 3u);
  EXPECT_TRUE(job.coordinator().history().slots.at(1).banned);
}

TEST(Coordinator, FailuresInARowAreBackedOffAndBanned) {
  Job job = Job::in('F');
  for (Life life = 1; life <= 6; ++life) {
    job.say(2, Exited{1, {}}, 0, life);
    job.take_sent();
    const Time back_off = life == 1 ? kLease / 40 : kLease << (life - 2);
    job.pass(back_off - kLease / 40, {0});
    EXPECT_EQ(job.take_sent().find("Launch:2"), std::string::npos) << life;
    job.pass(kLease / 20, {0});
    EXPECT_EQ(job.take_sent().find("Launch:2") != std::string::npos, life <= 5) << life;
  }
  EXPECT_TRUE(job.coordinator().history().slots.at(2).banned);
}

TEST(Coordinator, BannedSlotIsNotWaitedFor) {
  Job job = Job::in('F');
  job.say(1, Exited{static_cast<int32_t>(ExitCode::kConfig), "no such device"});
  EXPECT_EQ(job.phase(), 'F');  // the spare may come
  job.say(2, Exited{static_cast<int32_t>(ExitCode::kConfig), "no such device"});
  EXPECT_EQ(job.phase(), 'T');
}

TEST(Coordinator, NothingIsLaunchedByADeadAgent) {
  Job job = Job::in('R');
  job.put(SliceLost{2, 1, "its agent died"});
  job.take_sent();
  job.pass(3 * kLease, {0, 1});
  EXPECT_EQ(job.take_sent().find("Launch:2"), std::string::npos);
  job.say(2, AgentHello{7, 2, 0, false});
  EXPECT_NE(job.take_sent().find("Launch:2"), std::string::npos);
}

TEST(Coordinator, AQuarantinedSliceComesBackByBurnInAndProbation) {
  Job job = Job::in('R');
  job.say(0, SdcFinding{3, "defect", "it differs", {}, {1}, true});
  job.say(1, Exited{79, {}});
  job.say(0, job.state());
  ASSERT_EQ(job.phase(), 'T');
  job.say(0, Ready{});
  job.say(2, Ready{});
  job.take_sent();
  job.train(10 * kLease, 'C');
  EXPECT_EQ(job.phase(), 'R');
  EXPECT_EQ(job.take_sent().find("Launch:1"), std::string::npos);
  job.operate(Command::kReadmit, 1);
  EXPECT_NE(job.take_sent().find("Launch:1 with burn-in"), std::string::npos);

  Job failed = job;
  failed.say(1, Exited{79, "it differs"}, 0, 2);
  EXPECT_TRUE(failed.coordinator().history().slots.at(1).banned);
  failed.operate(Command::kReadmit, 1);
  failed.train(2 * kLease, 'C');
  EXPECT_NE(failed.take_sent().find("Launch:1 with burn-in"), std::string::npos);
  failed.say(1, Exited{137, {}}, 0, 3);  // not its fault: it has to be done again
  failed.train(2 * kLease, 'C');
  EXPECT_NE(failed.take_sent().find("Launch:1 with burn-in"), std::string::npos);

  job.say(1, Register{{1, 1}, 0, 1, "a"}, 0, 2);
  job.operate(Command::kScale, 3);
  job.train(10 * kLease, 'S');
  ASSERT_EQ(job.phase(), 'S');
  job.say(0, job.state(2));
  job.say(2, job.state(2));
  ASSERT_EQ(job.phase(), 'T');
  const EpochDecision& d = *job.coordinator().history().epoch;
  ASSERT_EQ(d.index_of(1), 1);
  EXPECT_EQ(d.watched, (std::vector<Step>{0, 52, 0}));
  EXPECT_NE(job.coordinator().status_text().find("on probation to step 52"), std::string::npos);
  job.say(1, Exited{137, {}}, 0, 2);
  job.take_sent();
  job.jump(kLease * 3 / 2);
  const std::string sent = job.take_sent();
  EXPECT_NE(sent.find("Launch:1;"), std::string::npos) << sent;
  EXPECT_EQ(job.coordinator().history().slots.at(1).watched, 52);
}

TEST(Coordinator, AHangIsChargedToTheSliceThatWaitsForNobody) {
  Job job = Job::in('R');
  for (int n = 0; n < 200 && job.phase() == 'R'; ++n) {
    job.say(0, Beat{{SlicePhase::kRunning, 1, 5}, {7, 1}});
    job.say(1, Beat{{SlicePhase::kRunning, 1, 5}, {7, {}}});
    job.pass(kLease / 40, {2});
  }
  EXPECT_EQ(job.phase(), 'C');
  EXPECT_NE(job.take_sent().find("Kill:1"), std::string::npos);
}

TEST(Coordinator, ABrokenLinkRebuildsTheSameMembersTheFirstTime) {
  Job job = Job::in('R');
  job.say(0, BrokenLink{1});
  job.both(job.state());
  ASSERT_EQ(job.phase(), 'T');
  EXPECT_TRUE(job.coordinator().history().epoch->has(0, 1) &&
              job.coordinator().history().epoch->has(1, 1));
  job.both(Ready{});
  job.say(1, BrokenLink{0});
  State state = job.state(9);
  job.both(state);
  ASSERT_EQ(job.phase(), 'T');
  EXPECT_TRUE(job.coordinator().history().epoch->has(0, 1));
  EXPECT_FALSE(job.coordinator().history().epoch->has(1, 1));
}

TEST(Coordinator, MessagesOfALaterIncarnationAreNotForThisOne) {
  Job job = Job::in('R');
  job.put(Received{{2, 1, 0, 1, BrokenLink{1}}});
  EXPECT_EQ(job.phase(), 'R');
}

}  // namespace
}  // namespace maniple

// Whole jobs of stand-in slices with processes killed and stopped. The losses are always those of
// the undisturbed run, and nothing is left behind.
#include "job_harness.h"

namespace maniple {
namespace {

// Kills a process and says how long after its end the first survivor had STOP in hand.
double detection_ms(const Job& job, pid_t victim, int slice) {
  const size_t before = job.history("halt").size();
  EndWatch watch(victim);
  const Time killed = monotonic_now();
  ::kill(victim, SIGKILL);
  const Time ended = watch.wait();
  const bool seen = job.until([&] {
    const auto halts = job.history("halt");
    return halts.size() > before && halts.back().slice != slice;
  });
  EXPECT_TRUE(seen);
  if (!seen) return std::nan("");
  const double ms = static_cast<double>(job.history("halt")[before].time - ended) / 1000;
  std::printf("  kill -> end %.2f ms, end -> STOP at a survivor %.2f ms\n",
              static_cast<double>(ended - killed) / 1000, ms);
  return ms;
}

TEST(Job, UndisturbedJobWritesEveryStepOnceAndLeavesNothing) {
  Job job(Job::Options{{"JOB_STEPS", "60"}});
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(60);
  job.expect_nothing_left();
  EXPECT_EQ(job.events("epoch"), 1);
  // Private folders are gone; what is left in TMPDIR is the run folder.
  for (const auto& entry : std::filesystem::directory_iterator(job.temporary()))
    EXPECT_EQ(entry.path().filename(), "run");
}

TEST(Job, KilledSlicesLeaveLossesIdentical) {
  std::vector<double> detections;
  for (const char* role : {"rank", "slice"}) {
    // Three of four slices die, each at another moment of a step; none comes back so soon.
    Job job(Job::Options{{"JOB_STEPS", "220"}, {"JOB_SLICES", "4"}, {"JOB_LEASE_US", "4000000"}});
    for (int slice = 3; slice >= 1; --slice) {
      const Step at = job.steps() + 20 + 7 * slice;
      ASSERT_TRUE(job.until([&] { return job.steps() >= at; }));
      ASSERT_TRUE(job.until([&] { return !job.processes(role, slice).empty(); }));
      detections.push_back(detection_ms(job, job.processes(role, slice).back().pid, slice));
      const std::string epoch = std::to_string(5 - slice) + " trains";
      ASSERT_TRUE(job.until([&] { return job.events("run", epoch) == 1; }));
    }
    EXPECT_EQ(job.wait(), 0);
    job.expect_all_losses(220);
    job.expect_nothing_left();
  }
  ASSERT_FALSE(detections.empty());
  std::sort(detections.begin(), detections.end());
  std::printf("  detection after the end of the process: median %.2f ms, worst %.2f ms of %zu\n",
              detections[detections.size() / 2], detections.back(), detections.size());
}

TEST(Job, KilledAgentTakesItsSliceAlongAndTheJobGoesOn) {
  Job job(Job::Options{{"JOB_STEPS", "150"}, {"JOB_LEASE_US", "4000000"}});
  ASSERT_TRUE(job.until([&] { return job.steps() >= 30; }));
  const auto slice = job.slice_processes(1);
  EXPECT_EQ(slice.size(), 4u);  // mpirun's stand-in, two ranks, the straggler
  detection_ms(job, job.only("agent", 1), 1);
  EXPECT_TRUE(job.until([&] {
    for (const JobProcess& p : job.slice_processes(1))
      for (const JobProcess& old : slice)
        if (p.pid == old.pid) return false;
    return true;
  }));
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(150);
  EXPECT_GE(job.events("epoch", "2 with 2 slices"), 1);
  job.expect_nothing_left();
}

TEST(Job, KilledCoordinatorContinuesFromItsLogWhileTrainingGoesOn) {
  Job job(Job::Options{{"JOB_STEPS", "200"}});
  for (const Step at : {40, 100}) {
    ASSERT_TRUE(job.until([&] { return job.steps() >= at; }));
    const pid_t old = job.only("coordinator");
    ::kill(old, SIGKILL);
    ASSERT_TRUE(job.until([&] {
      const auto now = job.processes("coordinator");
      return now.size() == 1 && now[0].pid != old;
    }));
  }
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(200);
  EXPECT_EQ(job.history("restored").size(), 3u);  // nobody had to restore again
  job.expect_nothing_left();
}

TEST(Job, CoordinatorStoppedForThreeLeasesEvictsNobody) {
  Job job(Job::Options{{"JOB_STEPS", "400"}, {"JOB_STEP_US", "15000"}});
  ASSERT_TRUE(job.until([&] { return job.steps() >= 20; }));
  const pid_t coordinator = job.only("coordinator");
  ::kill(coordinator, SIGSTOP);
  const Time begin = monotonic_now();
  const size_t commits = job.history("commit").size();
  ASSERT_TRUE(job.until([&] { return monotonic_now() > begin + 3 * kSecond; }));
  EXPECT_GT(job.history("commit").size(), commits + 60);
  ::kill(coordinator, SIGCONT);
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(400);
  EXPECT_EQ(job.events("epoch"), 1);
  job.expect_nothing_left();
}

TEST(Job, StoppedSliceIsDroppedAfterOneLeaseAndFencedWhenItWakes) {
  // The agent is stopped too, so that nobody kills the slice: it wakes as a zombie.
  Job job(Job::Options{{"JOB_STEPS", "300"}});
  ASSERT_TRUE(job.until([&] { return job.steps() >= 30; }));
  const pid_t agent = job.only("agent", 2);
  const auto slice = job.slice_processes(2);
  ::kill(agent, SIGSTOP);
  for (const JobProcess& p : slice) ::kill(p.pid, SIGSTOP);
  const Time stopped = monotonic_now();
  const size_t before = job.history("halt").size();
  ASSERT_TRUE(job.until([&] { return job.events("run", "2 trains") == 1; }));
  const double seconds = static_cast<double>(job.history("halt")[before].time - stopped) / kSecond;
  std::printf("  SIGSTOP -> STOP at a survivor %.3f s; the lease is 1 s\n", seconds);
  EXPECT_GT(seconds, 0.8);
  EXPECT_LT(seconds, 2.0);
  for (const JobProcess& p : slice) ::kill(p.pid, SIGCONT);
  const Step steps = job.steps();
  ASSERT_TRUE(job.until([&] { return job.steps() >= steps + 30; }));
  ::kill(agent, SIGCONT);
  ASSERT_TRUE(job.until([&] {
    for (const JobProcess& p : slice)
      if (::kill(p.pid, 0) == 0 && !job.processes({}, 2).empty())
        for (const JobProcess& q : job.slice_processes(2))
          if (q.pid == p.pid) return false;
    return true;
  }));
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(300);
  EXPECT_EQ(job.events("row_differs"), 0);
  job.expect_nothing_left();
}

TEST(Job, RelaunchedSliceJoinsAndLossesStayIdentical) {
  Job job(Job::Options{{"JOB_STEPS", "700"}, {"JOB_LEASE_US", "500000"}});
  ASSERT_TRUE(job.until([&] { return job.steps() >= 30; }));
  ::kill(job.only("slice", 0), SIGKILL);
  ASSERT_TRUE(job.until([&] { return job.events("epoch", "2 with 2 slices") == 1; }));
  ASSERT_TRUE(job.until([&] { return job.events("epoch", "a slice joins") == 1; }));
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(700);
  EXPECT_EQ(job.events("run", "3 trains"), 1);
  EXPECT_EQ(job.history("restored 3").size(), 3u);
  job.expect_nothing_left();
}

TEST(Job, WhySliceDidNotStartIsSaid) {
  Job job(Job::Options{{"JOB_STEPS", "60"}, {"JOB_REFUSES", "1"}});
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(60);
  EXPECT_EQ(job.events("slice_banned", "it exited with 78: there is no such device"), 1);
  EXPECT_EQ(job.events("slice_ended", "there is no such device"), 1);
  job.expect_nothing_left();
}

TEST(Job, KilledLauncherLeavesNoProcess) {
  Job job(Job::Options{{"JOB_STEPS", "100000"}});
  ASSERT_TRUE(job.until([&] { return job.steps() >= 20; }));
  EXPECT_EQ(job.processes().size(), 1u + 1 + 3 * (1 + 1 + 2 + 1));
  ::kill(job.launcher(), SIGKILL);
  EXPECT_EQ(job.wait(), 128 + SIGKILL);
  job.expect_nothing_left();
}

TEST(Job, TermPausesAtAStepBoundaryAndTheNextLaunchGoesOn) {
  PrivateFolder folder;
  const std::string run = folder.path() + "/run";
  {
    Job job(Job::Options{{"JOB_STEPS", "100000"}}, run);
    ASSERT_TRUE(job.until([&] { return job.steps() >= 20; }));
    ::kill(job.launcher(), SIGTERM);
    EXPECT_EQ(job.wait(), 75);
    job.expect_nothing_left();
    EXPECT_EQ(job.events("paused"), 1);
  }
  // There is no checkpoint, so the next launch begins at step 0; its rows replace the old ones.
  Job job(Job::Options{{"JOB_STEPS", "100"}}, run);
  EXPECT_EQ(job.wait(), 0);
  job.expect_all_losses(100);
  EXPECT_EQ(job.events("rollback"), 1);
  job.expect_nothing_left();
}

}  // namespace
}  // namespace maniple

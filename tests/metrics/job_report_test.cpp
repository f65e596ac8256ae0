#include "metrics/job_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/errors.h"

namespace maniple {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Reported : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/job_report_test";
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_ + "/elastic");
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  // ms after the start of the job, on the clock of the slice's machine.
  void note(int slice, double ms, const char* event, int epoch, int step, int life = 1) {
    std::ofstream file(fmt::format("{}/elastic/slice-{}.jsonl", dir_, slice), std::ios::app);
    file << fmt::format(R"({{"us":{:.0f},"life":{},"event":"{}","epoch":{},"step":{}}})",
                        5e9 + 1e3 * ms + offset_[slice], life, event, epoch, step)
         << "\n";
  }
  void say(const char* event, const char* text) {
    std::ofstream(dir_ + "/events.jsonl", std::ios::app)
        << fmt::format(R"({{"time":"t","event":"{}","text":"{}"}})", event, text) << "\n";
  }
  // Slice 1 dies in step 3 and joins after step 4.
  void lose_a_slice() {
    for (const int s : {0, 1}) {
      note(s, 0, "register", 0, 0);
      note(s, 100, "restore", 1, 0);
      note(s, 150 + s, "restored", 1, 0);
      note(s, 250, "commit", 1, 1);
      note(s, 350 + s, "commit", 1, 2);
    }
    note(0, 400, "halt", 1, 2);
    note(0, 420, "restore", 2, 2);
    note(0, 450, "restored", 2, 2);
    note(0, 600, "commit", 2, 3);
    note(1, 700, "register", 0, 0, 2);
    note(0, 750, "commit", 2, 4);
    for (const int s : {0, 1}) {
      note(s, 760, "restore", 3, 4, 1 + s);
      note(s, 780, "restored", 3, 4, 1 + s);
      note(s, 880, "commit", 3, 5, 1 + s);
    }
    say("epoch", "1 with 2 slices from step 0: ");
    say("epoch", "2 with 1 slices from step 2: slice 1 is lost: its rank 0 died");
    say("epoch", "3 with 2 slices from step 4: a slice joins");
  }
  std::string dir_;
  double offset_[2] = {0, 0};  // us
};

TEST_F(Reported, EverySecondIsGivenToOnePurpose) {
  lose_a_slice();
  const JobReport r = read_job_report(dir_);
  EXPECT_EQ(r.last_step, 5);
  EXPECT_NEAR(r.times.steps, 0.199 + 0.300 + 0.100, 1e-9);
  EXPECT_NEAR(r.times.interrupted, 0.050, 1e-9);
  EXPECT_NEAR(r.times.agreeing, 0.020 + 0.010, 1e-9);
  EXPECT_NEAR(r.times.restoring, 0.051 + 0.030 + 0.020, 1e-9);
  EXPECT_NEAR(r.times.sum(), 0.780, 1e-9);
  EXPECT_NEAR(r.goodput(), 0.599 / 0.780, 1e-9);
  ASSERT_EQ(r.epochs.size(), 3u);
  EXPECT_THAT(r.epochs[0].slices, ElementsAre(0, 1));
  EXPECT_THAT(r.epochs[1].slices, ElementsAre(0));
  EXPECT_EQ(r.epochs[1].steps, 2);
  EXPECT_EQ(r.epochs[1].cause, "slice 1 is lost: its rank 0 died");
  EXPECT_NEAR(r.epochs[1].before.interrupted, 0.050, 1e-9);
  EXPECT_NEAR(r.epochs[1].before.agreeing, 0.020, 1e-9);
  EXPECT_NEAR(r.epochs[1].before.restoring, 0.030, 1e-9);
  ASSERT_EQ(r.lives.size(), 3u);
  EXPECT_NEAR(r.lives[1].end, 0.251, 1e-9);
  EXPECT_NEAR(r.lives[2].trains, 0.680, 1e-9);
}

TEST_F(Reported, ClocksOfHostsAreSetByTheCommits) {
  lose_a_slice();
  const JobReport here = read_job_report(dir_);
  SetUp();
  offset_[1] = 7e9;
  lose_a_slice();
  const JobReport apart = read_job_report(dir_);
  EXPECT_NEAR(apart.times.sum(), here.times.sum(), 0.002);
  EXPECT_NEAR(apart.lives[2].trains, here.lives[2].trains, 0.002);
}

TEST_F(Reported, RollbacksAndReplaysAreTheirOwn) {
  note(0, 0, "restore", 1, 0);
  note(0, 10, "restored", 1, 0);
  note(0, 110, "commit", 1, 1);
  note(0, 150, "suspicion", 1, 2);
  note(0, 350, "commit", 1, 2);
  note(0, 360, "halt", 1, 2);
  note(0, 370, "restore", 2, 0);
  note(0, 400, "restored", 2, 0);
  note(0, 500, "commit", 2, 1);
  note(0, 600, "commit", 2, 2);
  note(0, 700, "commit", 2, 3);
  say("rollback", "of the launch before");
  say("epoch", "1 with 1 slices from step 0: ");
  say("rollback", "epoch 2 goes back to step 0: a block has no holder");
  const JobReport r = read_job_report(dir_);
  EXPECT_NEAR(r.times.steps, 0.100 + 0.040 + 0.100, 1e-9);
  EXPECT_NEAR(r.times.replaying, 0.200, 1e-9);
  EXPECT_NEAR(r.times.redone, 0.200, 1e-9);
  EXPECT_THAT(r.alarms, ElementsAre("rollback: epoch 2 goes back to step 0: a block has no holder"));
}

TEST_F(Reported, TheTimeLineShowsDeathAndReturn) {
  lose_a_slice();
  const std::string text = format_job_report(read_job_report(dir_), {false, false, 9 + 31});
  EXPECT_THAT(text, HasSubstr("slice 0  |===========|=============|====\n"));
  EXPECT_THAT(text, HasSubstr("slice 1  |.=======x             ...|====\n"));
  EXPECT_THAT(text, HasSubstr("goodput 0.768"));
}

TEST_F(Reported, TimeOfTheStepsByPhase) {
  lose_a_slice();
  EXPECT_TRUE(read_job_report(dir_).spent.empty());
  std::ofstream(dir_ + "/elastic/slice-1.jsonl", std::ios::app)
      << R"({"event":"spent","seconds":{"forward":1,"vote":0.5},"memory_rss_peak_mib":100})" << "\n"
      << R"({"event":"spent","seconds":{"forward":2,"vote":0.5,"odd":"x"},"memory_rss_peak_mib":90})" << "\n"
      << R"({"event":"spent","seconds":[1]})" << "\n";
  const JobReport r = read_job_report(dir_);
  ASSERT_EQ(r.spent.size(), 1u);
  EXPECT_EQ(r.spent[0].slice, 1);
  EXPECT_EQ(r.spent[0].memory_mib, 100);
  EXPECT_THAT(r.spent[0].seconds, ElementsAre(testing::Pair("forward", 3), testing::Pair("vote", 1)));
  EXPECT_THAT(format_job_report(r, {false, false, 80}), HasSubstr("    1     75.0     25.0          100\n"));
}

TEST_F(Reported, FoldersWithoutAJobAreRefused) {
  EXPECT_THROW(read_job_report(dir_), NoInputError);
  EXPECT_THROW(read_job_report(dir_ + "/nothing"), NoInputError);
  note(0, 0, "register", 0, 0);
  EXPECT_THROW(read_job_report(dir_), DataError);
}

TEST_F(Reported, ATornLineIsLeftOut) {
  lose_a_slice();
  std::ofstream(dir_ + "/elastic/slice-0.jsonl", std::ios::app) << R"({"us":59)";
  EXPECT_EQ(read_job_report(dir_).last_step, 5);
}

}  // namespace
}  // namespace maniple

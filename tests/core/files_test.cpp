#include "core/files.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "core/errors.h"
#include "core/signals.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/files_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string dir_;
};

TEST_F(Files, WhatIsWrittenIsReadAndNoTemporaryFileStays) {
  const std::string path = dir_ + "/a", bytes("x\0y\n", 4);
  write_file_atomic(path, "before");
  write_file_atomic(path, bytes);
  EXPECT_EQ(read_file(path), bytes);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()), 1);
}

TEST_F(Files, AbsentFilesAreNoInputOthersAreIo) {
  write_file_atomic(dir_ + "/a", "");
  EXPECT_THROW(read_file(dir_ + "/none"), NoInputError);
  EXPECT_THROW(read_file(dir_ + "/a/below"), NoInputError);
  EXPECT_THROW(read_file(dir_), IoError);
}

TEST_F(Files, FailedWritesLeaveTheOldFileAndSayWhy) {
  fs::create_directory(dir_ + "/folder");
  try {
    write_file_atomic(dir_ + "/folder", "x");
    FAIL();
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("irectory"), std::string::npos) << e.what();
  }
  EXPECT_THROW(write_file_atomic(dir_ + "/none/x", "x"), IoError);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()), 1);
}

TEST_F(Files, FoldersAreCreatedWithParents) {
  ensure_directory(dir_ + "/a/b/c");
  ensure_directory(dir_ + "/a/b/c");
  EXPECT_TRUE(fs::is_directory(dir_ + "/a/b/c"));
  write_file_atomic(dir_ + "/file", "");
  EXPECT_THROW(ensure_directory(dir_ + "/file"), IoError);
  EXPECT_THROW(ensure_directory(dir_ + "/file/below"), IoError);
}

TEST_F(Files, ASecondOwnerIsRefusedAndNamesTheFirst) {
  RunLock first(dir_);
  try {
    RunLock second(dir_, 0.05);
    FAIL();
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find(std::to_string(getpid())), std::string::npos) << e.what();
  }
  { RunLock moved = std::move(first); }
  RunLock third(dir_, 0);
}

TEST_F(Files, TheLockOfADyingOwnerIsWaitedFor) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    RunLock lock(dir_);
    if (write(ready[1], "x", 1) != 1) _exit(1);
    usleep(200'000);
    _exit(0);
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_THROW(RunLock(dir_, 0), IoError);
  EXPECT_NO_THROW(RunLock(dir_, 5));
  waitpid(child, nullptr, 0);
  close(ready[0]), close(ready[1]);
}

TEST(Signals, BecomeFlags) {
  install_signals();
  EXPECT_FALSE(stop_requested());
  EXPECT_FALSE(take_checkpoint_request());
  raise(SIGUSR2);
  raise(SIGUSR2);
  EXPECT_TRUE(checkpoint_requested());
  EXPECT_TRUE(take_checkpoint_request());
  EXPECT_FALSE(checkpoint_requested());
  EXPECT_FALSE(stop_requested());
  raise(SIGTERM);
  raise(SIGINT);
  EXPECT_TRUE(stop_requested());
  EXPECT_EQ(stop_signal(), SIGTERM);
  install_signals();
  raise(SIGUSR1);
  EXPECT_EQ(stop_signal(), SIGUSR1);
}

TEST(Signals, AChildDiesWithItsParent) {
  // The grandchild holds the write end of the pipe: its end is seen as end of file.
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    close(ends[0]);
    const pid_t child = fork();
    if (child == 0) {
      set_parent_death_signal();
      if (write(ends[1], "x", 1) != 1) _exit(1);
      for (;;) pause();
    }
    for (;;) pause();
  }
  close(ends[1]);
  char byte;
  ASSERT_EQ(read(ends[0], &byte, 1), 1);
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  EXPECT_EQ(read(ends[0], &byte, 1), 0);
  close(ends[0]);
}

}  // namespace
}  // namespace maniple

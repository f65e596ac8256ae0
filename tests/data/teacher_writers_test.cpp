#include "data/teacher_writers.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "core/errors.h"

namespace maniple {
namespace {

class TeacherWritersTest : public testing::Test {
 protected:
  TeacherWritersTest() {
    char name[] = "/tmp/writers-XXXXXX";
    folder_ = ::mkdtemp(name);
  }
  ~TeacherWritersTest() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(TeacherWritersTest, OneMakesTheStoreAndAFileHasOneWriter) {
  TeacherWriters first(folder_, 7);
  EXPECT_TRUE(first.alone());
  first.share();
  TeacherWriters second(folder_, 7);
  EXPECT_FALSE(second.alone());
  EXPECT_TRUE(first.claim(5, 0));
  EXPECT_FALSE(second.claim(5, 0));
  EXPECT_TRUE(second.claim(5, 16));
  EXPECT_TRUE(second.claim(6, 0));
  first.release(5, 0);
  EXPECT_TRUE(second.claim(5, 0));
}

TEST_F(TeacherWritersTest, OtherWorkIsRefusedUntilTheWritersHaveGone) {
  {
    TeacherWriters first(folder_, 7);
    first.share();
    try {
      TeacherWriters other(folder_, 8);
      FAIL() << "two kinds of work in one store";
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("other rows"), std::string::npos) << error.what();
    }
  }
  TeacherWriters other(folder_, 8);
  EXPECT_TRUE(other.alone());
}

TEST_F(TeacherWritersTest, TheClaimsOfAKilledWriterAreFree) {
  TeacherWriters first(folder_, 7);
  first.share();
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    TeacherWriters other(folder_, 7);
    const char said = other.claim(5, 0) ? 'y' : 'n';
    [[maybe_unused]] const ssize_t n = ::write(ready[1], &said, 1);
    for (;;) ::pause();
  }
  char said = 0;
  ASSERT_EQ(::read(ready[0], &said, 1), 1);
  EXPECT_EQ(said, 'y');
  EXPECT_FALSE(first.claim(5, 0));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(first.claim(5, 0));
}

}  // namespace
}  // namespace maniple

#include "data/teacher_writers.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "core/errors.h"
#include "core/files.h"
#include "core/random.h"

namespace maniple {
namespace {

constexpr int kPatience = 60;  // seconds for the writer that makes the store

[[noreturn]] void fail(const char* what, const std::string& path) {
  throw IoError(fmt::format("cannot {} '{}': {}", what, path, std::strerror(errno)));
}

int open_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) fail("open the lock", path);
  return fd;
}

bool try_lock(int fd, int mode, const std::string& path) {
  while (::flock(fd, mode | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) fail("lock", path);
  }
  return true;
}

// One byte of the file of claims stands for one file of rows. Open file descriptions own these
// locks, so threads and forks of this process do not drop them.
bool set_claim(int fd, short type, uint64_t source, int64_t first_row) {
  struct flock range = {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = static_cast<off_t>(mix64(source + mix64(static_cast<uint64_t>(first_row))) >> 2);
  range.l_len = 1;
  while (::fcntl(fd, F_OFD_SETLK, &range) != 0) {
    if (errno == EAGAIN || errno == EACCES) return false;
    if (errno != EINTR) fail("claim a file of", "teacher store");
  }
  return true;
}

}  // namespace

TeacherWriters::TeacherWriters(const std::string& folder, uint64_t work, Unlocked)
    : folder_(folder), work_(work) {
  ensure_directory(folder);
  lock_ = open_file(folder + "/.lock");
  claims_ = open_file(folder + "/.claims");
}

TeacherWriters::TeacherWriters(const std::string& folder, uint64_t work)
    : TeacherWriters(folder, work, Unlocked()) {
  const std::string path = folder + "/.lock";
  for (int tries = 0; tries < 10 * kPatience; ++tries) {
    if (try_lock(lock_, LOCK_EX, path)) {
      alone_ = true;
      return;
    }
    if (try_lock(lock_, LOCK_SH, path)) {
      check_work();
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  throw IoError(fmt::format("cannot write teacher store {}: another process held its lock for {} s",
                            folder, kPatience));
}

TeacherWriters::~TeacherWriters() {
  for (const int fd : {lock_, claims_})
    if (fd >= 0) ::close(fd);
}

void TeacherWriters::check_work() const {
  uint64_t theirs = 0;
  if (::pread(lock_, &theirs, sizeof theirs, 0) == sizeof theirs && theirs == work_) return;
  throw IoError(fmt::format(
      "cannot write teacher store {}: another process writes other rows or other files there; "
      "those who write together have the same config; wait for it or stop it",
      folder_));
}

void TeacherWriters::share() {
  if (!alone_) return;
  const std::string path = folder_ + "/.lock";
  if (::pwrite(lock_, &work_, sizeof work_, 0) != sizeof work_) fail("write", path);
  alone_ = false;
  while (!try_lock(lock_, LOCK_SH, path)) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  check_work();  // a lock is given up before it is changed: another may have come between
}

bool TeacherWriters::claim(uint64_t source, int64_t first_row) {
  return set_claim(claims_, F_WRLCK, source, first_row);
}

void TeacherWriters::release(uint64_t source, int64_t first_row) {
  set_claim(claims_, F_UNLCK, source, first_row);
}

}  // namespace maniple

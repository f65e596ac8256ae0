// Whole files, folders and the lock of a run folder. Every failure names the path and the errno
// text.
#pragma once

#include <string>
#include <string_view>

namespace maniple {

// The bytes of `path`. NoInputError if it does not exist, IoError if it cannot be read (a folder,
// permissions, a read error). `what` says in messages what the file is for.
std::string read_file(const std::string& path, const std::string& what = "file");

// Replaces `path` by a file with these bytes, or leaves it as it was: a temporary file beside it is
// written, synced and renamed over it, then the folder is synced. Throws IoError; the temporary
// file is then gone. Concurrent writers of one path do not mix their bytes.
void write_file_atomic(const std::string& path, std::string_view bytes);

// Creates the folder and its parents where missing. Throws IoError.
void ensure_directory(const std::string& path);

// Exclusive ownership of a run folder for the life of the object: flock on `<dir>/.lock`, which the
// kernel releases however the owner dies. Other hosts are excluded where the file system does so.
class RunLock {
 public:
  // Creates the folder if needed. Waits up to `wait_seconds` for a dying owner, then throws IoError
  // naming the owner's process id.
  explicit RunLock(const std::string& dir, double wait_seconds = 5);
  ~RunLock();
  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&& other) noexcept;
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace maniple

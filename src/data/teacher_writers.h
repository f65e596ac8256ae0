// Processes that write one teacher store at the same time. All of them have the same work: the same
// rows, cut into the same files. Each claims a file before it computes it; the kernel takes the
// claims of a process back however it dies. Claims save double work and no more: two that wrote the
// same file would write the same bytes.
#pragma once

#include <cstdint>
#include <string>

namespace maniple {

class TeacherWriters {
 public:
  // Joins the writers of `folder`, which is made if needed. `work`: a number for the rows and files,
  // equal for those that may write together. Throws IoError while others have other work there.
  TeacherWriters(const std::string& folder, uint64_t work);
  ~TeacherWriters();
  TeacherWriters(const TeacherWriters&) = delete;
  TeacherWriters& operator=(const TeacherWriters&) = delete;

  // True until share() for the writer that found nobody: others wait for it. It makes the store.
  bool alone() const { return alone_; }
  void share();

  // The file with these rows is this process's until release(). False: another one has it.
  bool claim(uint64_t source, int64_t first_row);
  void release(uint64_t source, int64_t first_row);

 private:
  struct Unlocked {};
  TeacherWriters(const std::string& folder, uint64_t work, Unlocked);

  void check_work() const;

  const std::string folder_;
  const uint64_t work_;
  int lock_ = -1, claims_ = -1;
  bool alone_ = false;
};

}  // namespace maniple

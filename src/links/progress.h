// The one thread of a process that moves bytes on its links: it alone reads, writes and closes
// their descriptors. It takes no signals. Outlives every listener and link set that was made with
// it.
#pragma once

#include <memory>

namespace asio {
class io_context;
}

namespace maniple {

class Progress {
 public:
  Progress();
  ~Progress();  // stops the thread and joins it
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  asio::io_context& context();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace maniple

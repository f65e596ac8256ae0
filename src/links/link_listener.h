// The port of a process on which equal positions of other slices connect. Made once per process;
// link sets come and go with the epochs. A stranger gets nothing: no answer without the job token,
// 256 bytes within the time allowed or the connection is closed, a bounded number of connections
// that have not said hello (the oldest goes first). A hello for an epoch that this process has not
// opened yet waits for it; one for an epoch that is over is refused.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "links/progress.h"

namespace maniple {

struct ListenerLimits {
  double hello_s = 2;      // from accept to the whole hello
  double early_s = 10;     // how long a hello for a later epoch waits
  int max_strangers = 64;  // connections without a hello
  int max_early = 1024;
};

class LinkListener {
 public:
  // Binds to a numeric address; port 0 lets the system choose. Throws CommError.
  LinkListener(Progress& progress, const std::string& address, uint16_t port, std::string token,
               ListenerLimits limits = {});
  ~LinkListener();  // after its link sets
  LinkListener(const LinkListener&) = delete;
  LinkListener& operator=(const LinkListener&) = delete;

  uint16_t port() const;

  // Any thread.
  struct Counters {
    uint64_t accepted = 0;     // connections
    uint64_t malformed = 0;    // closed: no hello, or not in time
    uint64_t wrong_token = 0;  // closed without an answer
    uint64_t refused = 0;      // answered with a reason
    uint64_t linked = 0;
  };
  Counters counters() const;

  struct Impl;  // src/links/listener_impl.h

 private:
  friend class LinkSet;
  std::shared_ptr<Impl> impl_;
};

}  // namespace maniple

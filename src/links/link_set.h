// The links of one process in one epoch: a full mesh between the equal positions of the member
// slices. Made for an epoch, connected once, thrown away with it.
//
//   Progress progress;                                   // one per process
//   LinkListener listener(progress, "10.0.0.4", 0, token);
//   ...                                                  // addresses go round with the EPOCH
//   LinkSet links(progress, listener, config);
//   links.connect();
//   links.begin_attempt(step, attempt);
//   links.start(operation); ... links.wait(*operation, deadline_s);
//
// Frames carry (incarnation, epoch, step, attempt); older ones are dropped and counted, newer ones
// wait in the socket until this process gets there. A member that is seen in a newer attempt ends
// this one's operations with it.
//
// Failure. A link breaks by a reset, an end of file, bytes that are corrupt or make no sense, or a
// deadline; on_broken hears of it once. Then every running operation fails and every later one too,
// with a CommError that names the slice; the other links stay open (closing them would make healthy
// slices accuse this one) and what arrives on them is dropped. Only a new epoch connects again.
// A broken link is noticed at once, except while its next frame waits for an operation that was not
// started here yet.
//
// Threads. start, wait, abandon, begin_attempt: one thread at a time, the same order of operations
// in all members. shutdown, broken, waiting_for, counters: any thread, at any time in the life of
// the set. Descriptors are closed by the progress thread alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "links/link_listener.h"
#include "links/operation.h"

namespace maniple {

struct LinkMember {
  int slice = 0;
  std::string address;  // numeric
  uint16_t port = 0;
};

struct LinkConfig {
  std::string token;
  uint64_t incarnation = 0, epoch = 0;
  int position = 0;
  std::string build;                // build fingerprint
  std::vector<LinkMember> members;  // slices ascend; equal in all members
  int self = 0;                     // index of this slice
  double connect_s = 2;
  double user_timeout_s = 20;  // TCP_USER_TIMEOUT
  // Called once per broken link by the progress thread; must not wait. Not called for links that
  // shutdown or the destructor end.
  std::function<void(int slice, const std::string& reason)> on_broken;
};

class LinkSet {
 public:
  LinkSet(Progress& progress, LinkListener& listener, LinkConfig config);
  // Ends the links. With all operations done and no break it says goodbye: operations of the others
  // that need nothing more of this member go on, new ones fail.
  ~LinkSet();
  LinkSet(const LinkSet&) = delete;
  LinkSet& operator=(const LinkSet&) = delete;

  // Returns when all links stand. Throws CommError: refused (with the other side's reason), not
  // everybody there within connect_s, or shutdown.
  void connect();

  int size() const;
  int self() const;
  int slice_of(int member) const;

  // Tags what follows. (step, attempt) grows; operations of the attempt before that still run fail.
  void begin_attempt(uint64_t step, uint32_t attempt);
  uint64_t step() const;
  uint32_t attempt() const;
  uint32_t next_sequence() const;  // of the operation that start would get now

  // Queues the operation on all links. Never throws: a failure is for wait to tell.
  void start(std::shared_ptr<Operation> operation);
  // Returns when all its pieces were received and handed to the sockets. Throws CommError when a
  // link broke, shutdown was called, or deadline_s have passed since this call (the links to
  // members that still owe something are given up). Afterwards nobody touches the operation's
  // memory.
  void wait(Operation& operation, double deadline_s);
  // Ends it here, if it still runs. For the way out of an exception: the peers are not told.
  void abandon(Operation& operation);

  // Ends every wait at once, sends and connect included, with a CommError that says `reason`; the
  // set is of no use afterwards. For watchdogs: calls shutdown(2), closes nothing.
  void shutdown(const std::string& reason);

  // Why all operations fail; empty while no link broke.
  std::string broken() const;
  // Slices that owe something to running operations.
  std::vector<int> waiting_for() const;

  struct Counters {
    uint64_t sent_bytes = 0, received_bytes = 0;  // payloads of operations
    uint64_t stale_epoch = 0, stale_attempt = 0;  // frames dropped
    uint64_t late = 0;  // frames dropped: of operations that ended here, or after a break
  };
  Counters counters() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace maniple

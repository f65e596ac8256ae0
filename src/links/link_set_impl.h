// Private to src/links. Which thread may touch what: `progress` members belong to the progress
// thread, `caller` members to the thread of start and wait, `shared` ones need the mutex.
#pragma once

#include <asio.hpp>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>

#include "links/dial.h"
#include "links/link.h"
#include "links/link_set.h"
#include "links/listener_impl.h"

namespace maniple {

struct LinkSet::Impl final : LinkOwner, std::enable_shared_from_this<LinkSet::Impl> {
  using Tag = std::pair<uint64_t, uint32_t>;  // step, attempt
  using State = Operation::State;

  Impl(asio::io_context& context, std::shared_ptr<LinkListener::Impl> listener, LinkConfig config);

  // Progress thread.
  void open();
  void add_link(int member, asio::ip::tcp::socket socket);
  std::string examine(const Hello& hello) const;  // empty: as it must be
  Hello hello_to(int member) const;
  int member_of(int slice) const;  // -1: none
  void connect_timed_out();
  void add(const std::shared_ptr<Operation>& operation);
  void end(const std::shared_ptr<Operation>& operation, State state, const std::string& error);
  void end_all(const std::string& error);
  void direction_done(const std::shared_ptr<Operation>& operation);
  void give_up(const std::shared_ptr<Operation>& operation, double deadline_s);
  void set_attempt(Tag tag);
  void fail(const std::string& reason);  // the set is broken
  void close();

  Verdict judge(int peer, const FrameHeader& header, std::shared_ptr<Operation>& op) override;
  FrameHeader header_of(const Operation& operation) const override;
  bool needs(const Operation& operation, int peer) const;
  void piece_sent(int peer, const std::shared_ptr<Operation>& operation, size_t bytes) override;
  void piece_received(int peer, const std::shared_ptr<Operation>& operation) override;
  void link_failed(int peer, const std::string& reason) override;
  void link_left(int peer) override;
  std::shared_ptr<Link> take_link(int peer);  // none: it is gone already

  const LinkConfig config;
  const std::shared_ptr<LinkListener::Impl> listener;
  asio::io_context& context;

  struct {
    std::vector<std::shared_ptr<Link>> links;  // none: not yet, or broken
    std::vector<std::shared_ptr<Dial>> dials;
    std::optional<LinkListener::Impl::Doors::iterator> door;
    std::map<uint32_t, std::shared_ptr<Operation>> running;
    Tag tag{0, 0};
    uint32_t next_sequence = 0;
    bool closed = false;
  } progress;
  asio::steady_timer connect_timer;

  struct {
    Tag tag{0, 0};
    uint32_t next_sequence = 0;
  } caller;

  mutable std::mutex mutex;
  std::condition_variable changed;
  struct {
    std::string broken;
    std::string left;  // a member said goodbye: no operation can begin
    bool shut = false, connected = false;
    std::vector<int> descriptors;  // -1: none
    std::vector<int> owes;         // running operations that wait for a member
  } shared;

  struct {
    std::atomic<uint64_t> sent_bytes = 0, received_bytes = 0, stale_epoch = 0, stale_attempt = 0,
                          late = 0;
  } count;
};

}  // namespace maniple

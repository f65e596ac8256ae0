// The progress thread's side of a link set.
#include "links/link_set_impl.h"

#include <sys/socket.h>

#include "core/errors.h"
#include "links/socket_options.h"

namespace maniple {

using asio::ip::tcp;

LinkSet::Impl::Impl(asio::io_context& context, std::shared_ptr<LinkListener::Impl> listener,
                    LinkConfig c)
    : config(std::move(c)),
      listener(std::move(listener)),
      context(context),
      connect_timer(context) {
  const size_t n = config.members.size();
  progress.links.resize(n);
  progress.dials.resize(n);
  shared.descriptors.assign(n, -1);
  shared.owes.assign(n, 0);
}

// --- Connecting --------------------------------------------------------------------------------

int LinkSet::Impl::member_of(int slice) const {
  for (size_t i = 0; i < config.members.size(); ++i)
    if (config.members[i].slice == slice) return static_cast<int>(i);
  return -1;
}

Hello LinkSet::Impl::hello_to(int member) const {
  return {config.token,
          config.incarnation,
          config.epoch,
          config.members[config.self].slice,
          config.members[member].slice,
          config.position,
          config.build};
}

std::string LinkSet::Impl::examine(const Hello& hello) const {
  const int member = member_of(hello.slice);
  if (hello.to_slice != config.members[config.self].slice)
    return fmt::format("this is slice {}, not {}", config.members[config.self].slice,
                       hello.to_slice);
  if (hello.position != config.position)
    return fmt::format("this is position {}, not {}", config.position, hello.position);
  if (member < 0 || member == config.self)
    return fmt::format("slice {} is no other member of epoch {}", hello.slice, config.epoch);
  if (hello.build != config.build)
    return fmt::format(
        "build fingerprint {} here, {} there: slices must run the same build on the "
        "same kind of machine",
        config.build, hello.build);
  if (std::pair(hello.incarnation, hello.epoch) != std::pair(config.incarnation, config.epoch))
    return fmt::format("this is incarnation {} epoch {}, not {} {}", config.incarnation,
                       config.epoch, hello.incarnation, hello.epoch);
  return {};
}

// The higher member connects to the lower one.
void LinkSet::Impl::open() {
  if (progress.closed) return;
  const int n = static_cast<int>(config.members.size());
  if (n == 1) {
    std::lock_guard lock(mutex);
    shared.connected = true;
    changed.notify_all();
    return;
  }
  connect_timer.expires_after(std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(config.connect_s)));
  connect_timer.async_wait([self = shared_from_this()](const asio::error_code& stopped) {
    if (!stopped) self->connect_timed_out();
  });
  for (int member = 0; member < config.self; ++member) {
    const auto& to = config.members[member];
    asio::error_code error;
    const auto address = asio::ip::make_address(to.address, error);
    if (error)
      return fail(
          fmt::format("slice {} has the address {}, which is not numeric", to.slice, to.address));
    auto refused = [this, member](const std::string& reason) {
      fail(fmt::format("slice {} refused the link: {}", config.members[member].slice, reason));
    };
    auto done = [this, member](tcp::socket socket, const Hello& reply) {
      std::string trouble;
      if (!equal_tokens(reply.token, config.token))
        trouble = "it does not know the job token";
      else if (member_of(reply.slice) != member)
        trouble = fmt::format("it is slice {}", reply.slice);
      else
        trouble = examine(reply);
      if (trouble.empty()) return add_link(member, std::move(socket));
      fail(fmt::format("link to slice {} at {} port {}: {}", config.members[member].slice,
                       config.members[member].address, config.members[member].port, trouble));
    };
    progress.dials[member] = std::make_shared<Dial>(context, tcp::endpoint(address, to.port),
                                                    hello_to(member), Dial::Events{done, refused});
    progress.dials[member]->start();
  }
  auto greeted = [this](const Hello& hello, Hello& reply) -> std::string {
    std::string refusal = examine(hello);
    const int member = member_of(hello.slice);
    if (refusal.empty() && (member < config.self || shared.descriptors[member] >= 0))
      refusal = "this link exists already; only a new epoch connects again";
    if (refusal.empty()) reply = hello_to(member);
    return refusal;
  };
  auto adopt = [this](const Hello& hello, tcp::socket socket) {
    add_link(member_of(hello.slice), std::move(socket));
  };
  progress.door = listener->open_door({config.incarnation, config.epoch, greeted, adopt});
}

void LinkSet::Impl::add_link(int member, tcp::socket socket) {
  if (progress.closed) return;
  const int fd = socket.native_handle();
  prepare_link(fd, config.user_timeout_s);
  progress.dials[member] = nullptr;
  progress.links[member] = std::make_shared<Link>(std::move(socket), member, *this);
  {
    std::lock_guard lock(mutex);
    shared.descriptors[member] = fd;
    if (shared.shut) ::shutdown(fd, SHUT_RDWR);
    size_t linked = 1;
    for (const auto& link : progress.links) linked += link != nullptr;
    if (linked == progress.links.size()) {
      shared.connected = true;
      connect_timer.cancel();
      changed.notify_all();
    }
  }
  progress.links[member]->start();
}

void LinkSet::Impl::connect_timed_out() {
  std::string missing;
  for (size_t i = 0; i < progress.links.size(); ++i) {
    if (progress.links[i] || static_cast<int>(i) == config.self) continue;
    missing += fmt::format("{}slice {} ({})", missing.empty() ? "" : ", ", config.members[i].slice,
                           progress.dials[i] ? progress.dials[i]->last_trouble()
                                             : std::string("it has not connected"));
  }
  if (!missing.empty()) fail(fmt::format("no link within {} s to {}", config.connect_s, missing));
}

void LinkSet::Impl::close() {
  progress.closed = true;
  connect_timer.cancel();
  if (progress.door) listener->close_door(*progress.door);
  progress.door.reset();
  for (auto& dial : progress.dials)
    if (dial) dial->close();
  bool orderly = progress.running.empty();
  end_all("the link set was closed");
  {
    std::lock_guard lock(mutex);
    orderly = orderly && shared.broken.empty();
    std::fill(shared.descriptors.begin(), shared.descriptors.end(), -1);
  }
  FrameHeader last;
  last.incarnation = config.incarnation;
  last.epoch = config.epoch;
  for (auto& link : progress.links) {
    if (link && orderly) link->say_goodbye(last);
    if (link) link->close();
  }
  progress.links.assign(progress.links.size(), nullptr);
}

// --- Operations --------------------------------------------------------------------------------

void LinkSet::Impl::add(const std::shared_ptr<Operation>& op) {
  progress.next_sequence = op->sequence_ + 1;
  std::string broken;
  {
    std::lock_guard lock(mutex);
    broken = shared.broken.empty() ? shared.left : shared.broken;
    if (op->state_ != State::kRunning) return;
    if (broken.empty() && op->open_ > 0)
      for (size_t i = 0; i < op->to_receive_.size(); ++i) shared.owes[i] += op->to_receive_[i] > 0;
  }
  if (progress.closed) broken = "the link set was closed";
  if (!broken.empty()) return end(op, State::kFailed, broken);
  if (op->open_ == 0) return end(op, State::kDone, "");
  progress.running[op->sequence_] = op;
  // By copies of the pointers: a link may fail inside.
  const auto links = progress.links;
  for (size_t i = 0; i < links.size(); ++i)
    if (op->to_send_[i] > 0 && links[i]) links[i]->send(op);
  for (const auto& link : links)
    if (link) link->resume();
}

void LinkSet::Impl::end(const std::shared_ptr<Operation>& op, State state,
                        const std::string& error) {
  const bool ran = progress.running.erase(op->sequence_) > 0;
  if (state != State::kDone)
    for (const auto& link : progress.links)
      if (link) link->forget(op.get());
  std::lock_guard lock(mutex);
  if (ran)
    for (size_t i = 0; i < op->to_receive_.size(); ++i)
      shared.owes[i] -= op->received_[i] < op->to_receive_[i];
  if (op->state_ == State::kRunning) {
    op->state_ = state;
    op->error_ = error;
  }
  changed.notify_all();
}

void LinkSet::Impl::end_all(const std::string& error) {
  while (!progress.running.empty())
    end(std::shared_ptr(progress.running.begin()->second), State::kFailed, error);
}

void LinkSet::Impl::direction_done(const std::shared_ptr<Operation>& op) {
  if (--op->open_ == 0) end(op, State::kDone, "");
}

void LinkSet::Impl::piece_sent(int peer, const std::shared_ptr<Operation>& op, size_t bytes) {
  count.sent_bytes += bytes;
  if (++op->sent_[peer] == op->to_send_[peer]) direction_done(op);
}

void LinkSet::Impl::piece_received(int peer, const std::shared_ptr<Operation>& op) {
  if (++op->received_[peer] < op->to_receive_[peer]) return;
  {
    std::lock_guard lock(mutex);
    --shared.owes[peer];
  }
  direction_done(op);
}

FrameHeader LinkSet::Impl::header_of(const Operation& op) const {
  FrameHeader header;
  header.incarnation = config.incarnation;
  header.epoch = config.epoch;
  header.step = op.step_;
  header.attempt = op.attempt_;
  header.sequence = op.sequence_;
  return header;
}

LinkOwner::Verdict LinkSet::Impl::judge(int peer, const FrameHeader& header,
                                        std::shared_ptr<Operation>& op) {
  if (header.incarnation != config.incarnation || header.epoch != config.epoch) {
    ++count.stale_epoch;
    return Verdict::kDrop;
  }
  const Tag tag(header.step, header.attempt);
  if (tag < progress.tag) {
    ++count.stale_attempt;
    return Verdict::kDrop;
  }
  {
    std::lock_guard lock(mutex);
    if (!shared.broken.empty()) {
      ++count.late;
      return Verdict::kDrop;
    }
  }
  if (tag > progress.tag) {
    // What it still owes will not come; operations that wait for others only go on.
    const auto running = progress.running;
    for (const auto& [sequence, waiting] : running)
      if (waiting->received_[peer] < waiting->to_receive_[peer])
        end(waiting, State::kFailed,
            fmt::format("slice {} has gone on to step {}, attempt {}", config.members[peer].slice,
                        header.step, header.attempt));
    return Verdict::kHold;
  }
  const auto found = progress.running.find(header.sequence);
  if (found == progress.running.end() ||
      found->second->received_[peer] == found->second->to_receive_[peer]) {
    if (header.sequence >= progress.next_sequence) return Verdict::kHold;
    ++count.late;
    return Verdict::kDrop;
  }
  op = found->second;
  if (header.piece != op->received_[peer]) {
    link_failed(peer, fmt::format("sent piece {} of an operation, {} was due", header.piece,
                                  op->received_[peer]));
    return Verdict::kDrop;
  }
  count.received_bytes += header.bytes;
  return Verdict::kTake;
}

void LinkSet::Impl::set_attempt(Tag tag) {
  end_all(fmt::format("given up: attempt {} of step {} has begun", tag.second, tag.first));
  progress.tag = tag;
  progress.next_sequence = 0;
  const auto links = progress.links;
  for (const auto& link : links)
    if (link) link->resume();
}

// --- Failure -----------------------------------------------------------------------------------

std::shared_ptr<Link> LinkSet::Impl::take_link(int peer) {
  std::lock_guard lock(mutex);
  shared.descriptors[peer] = -1;
  return std::exchange(progress.links[peer], nullptr);
}

bool LinkSet::Impl::needs(const Operation& op, int peer) const {
  return op.received_[peer] < op.to_receive_[peer] || op.sent_[peer] < op.to_send_[peer];
}

// What the others still owe comes as before.
void LinkSet::Impl::link_left(int peer) {
  const auto link = take_link(peer);
  if (!link) return;
  link->close();
  const std::string left =
      fmt::format("epoch {}: slice {} has left it", config.epoch, config.members[peer].slice);
  {
    std::lock_guard lock(mutex);
    shared.left = left;
  }
  for (const auto& [sequence, op] : progress.running)
    if (needs(*op, peer)) return fail(left);
}

void LinkSet::Impl::link_failed(int peer, const std::string& reason) {
  const auto link = take_link(peer);
  if (!link) return;
  link->close();
  {
    std::unique_lock lock(mutex);
    if (shared.shut) {
      lock.unlock();
      return fail("");
    }
  }
  const int slice = config.members[peer].slice;
  fail(fmt::format("link to slice {}: {}", slice, reason));
  if (config.on_broken) config.on_broken(slice, reason);
}

void LinkSet::Impl::fail(const std::string& reason) {
  std::string first;
  {
    std::lock_guard lock(mutex);
    if (shared.broken.empty())
      shared.broken =
          reason.starts_with("epoch ") ? reason : fmt::format("epoch {}: {}", config.epoch, reason);
    first = shared.broken;
    changed.notify_all();
  }
  connect_timer.cancel();
  for (auto& dial : progress.dials)
    if (dial) dial->close();
  end_all(first);
  // What is held is dropped now.
  const auto links = progress.links;
  for (const auto& link : links)
    if (link) link->resume();
}

void LinkSet::Impl::give_up(const std::shared_ptr<Operation>& op, double deadline_s) {
  if (progress.running.find(op->sequence_) == progress.running.end() ||
      progress.running[op->sequence_] != op)
    return;
  for (size_t i = 0; i < op->to_send_.size(); ++i)
    if (needs(*op, static_cast<int>(i)))
      link_failed(static_cast<int>(i),
                  fmt::format("no end of an operation within {} s", deadline_s));
}

}  // namespace maniple

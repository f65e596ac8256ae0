#include "links/link_set.h"

#include <sys/socket.h>

#include <future>

#include "core/errors.h"
#include "links/link_set_impl.h"

namespace maniple {

LinkSet::LinkSet(Progress& progress, LinkListener& listener, LinkConfig config) {
  const int n = static_cast<int>(config.members.size());
  MANIPLE_INVARIANT(config.self >= 0 && config.self < n, "member {} of {}", config.self, n);
  for (int i = 1; i < n; ++i)
    MANIPLE_INVARIANT(config.members[i - 1].slice < config.members[i].slice,
                      "slices {} and {} are not ascending", config.members[i - 1].slice,
                      config.members[i].slice);
  if (config.build.size() > kMaxBuildBytes)
    throw ConfigError(
        fmt::format("build fingerprint of {} bytes; {} fit", config.build.size(), kMaxBuildBytes));
  impl_ = std::make_shared<Impl>(progress.context(), listener.impl_, std::move(config));
}

LinkSet::~LinkSet() {
  std::promise<void> done;
  asio::post(impl_->context, [&] {
    impl_->close();
    done.set_value();
  });
  done.get_future().wait();
}

void LinkSet::connect() {
  asio::post(impl_->context, [impl = impl_] { impl->open(); });
  std::unique_lock lock(impl_->mutex);
  const auto& shared = impl_->shared;
  impl_->changed.wait(lock, [&] { return shared.connected || !shared.broken.empty(); });
  if (!shared.broken.empty()) throw CommError("connecting to the other slices, " + shared.broken);
}

int LinkSet::size() const { return static_cast<int>(impl_->config.members.size()); }
int LinkSet::self() const { return impl_->config.self; }
int LinkSet::slice_of(int member) const { return impl_->config.members[member].slice; }
uint64_t LinkSet::step() const { return impl_->caller.tag.first; }
uint32_t LinkSet::attempt() const { return impl_->caller.tag.second; }
uint32_t LinkSet::next_sequence() const { return impl_->caller.next_sequence; }

void LinkSet::begin_attempt(uint64_t step, uint32_t attempt) {
  const Impl::Tag tag(step, attempt);
  MANIPLE_INVARIANT(tag > impl_->caller.tag, "step {}, attempt {} after {}, {}", step, attempt,
                    impl_->caller.tag.first, impl_->caller.tag.second);
  impl_->caller.tag = tag;
  impl_->caller.next_sequence = 0;
  asio::post(impl_->context, [impl = impl_, tag] { impl->set_attempt(tag); });
}

void LinkSet::start(std::shared_ptr<Operation> op) {
  MANIPLE_INVARIANT(static_cast<int>(op->to_send_.size()) == size() && op->to_send_[self()] == 0 &&
                        op->to_receive_[self()] == 0,
                    "an operation of {} members in a set of {}", op->to_send_.size(), size());
  std::tie(op->step_, op->attempt_) = impl_->caller.tag;
  op->sequence_ = impl_->caller.next_sequence++;
  {
    std::lock_guard lock(impl_->mutex);
    MANIPLE_INVARIANT(op->state_ == Operation::State::kNew, "an operation was started twice");
    op->state_ = Operation::State::kRunning;
  }
  asio::post(impl_->context, [impl = impl_, op = std::move(op)] { impl->add(op); });
}

void LinkSet::wait(Operation& op, double deadline_s) {
  const auto ended = [&] { return op.state_ != Operation::State::kRunning; };
  const auto deadline = std::chrono::steady_clock::now() +
                        std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                            std::chrono::duration<double>(deadline_s));
  std::unique_lock lock(impl_->mutex);
  if (!impl_->changed.wait_until(lock, deadline, ended)) {
    lock.unlock();
    asio::post(impl_->context, [impl = impl_, op = op.shared_from_this(), deadline_s] {
      impl->give_up(op, deadline_s);
    });
    lock.lock();
    impl_->changed.wait(lock, ended);
  }
  MANIPLE_INVARIANT(op.state_ != Operation::State::kNew, "waiting for what was not started");
  if (op.state_ == Operation::State::kFailed) throw CommError(op.error_);
}

void LinkSet::abandon(Operation& op) {
  asio::post(impl_->context, [impl = impl_, op = op.shared_from_this()] {
    impl->end(op, Operation::State::kFailed, "abandoned");
  });
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return op.state_ != Operation::State::kRunning; });
}

void LinkSet::shutdown(const std::string& reason) {
  {
    std::lock_guard lock(impl_->mutex);
    if (impl_->shared.broken.empty())
      impl_->shared.broken = fmt::format("epoch {}: {}", impl_->config.epoch, reason);
    impl_->shared.shut = true;
    for (const int fd : impl_->shared.descriptors)
      if (fd >= 0) ::shutdown(fd, SHUT_RDWR);
  }
  asio::post(impl_->context, [impl = impl_] { impl->fail(""); });
}

std::string LinkSet::broken() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->shared.broken;
}

std::vector<int> LinkSet::waiting_for() const {
  std::vector<int> slices;
  std::lock_guard lock(impl_->mutex);
  for (int i = 0; i < size(); ++i)
    if (impl_->shared.owes[i] > 0) slices.push_back(slice_of(i));
  return slices;
}

LinkSet::Counters LinkSet::counters() const {
  const auto& c = impl_->count;
  return {c.sent_bytes, c.received_bytes, c.stale_epoch, c.stale_attempt, c.late};
}

}  // namespace maniple

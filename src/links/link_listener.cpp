#include "links/link_listener.h"

#include <future>

#include "core/errors.h"
#include "links/listener_impl.h"
#include "links/socket_options.h"

namespace maniple {

using asio::ip::tcp;
using Seconds = std::chrono::duration<double>;

namespace {

auto soon(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(Seconds(seconds));
}

}  // namespace

struct LinkListener::Impl::Guest {
  explicit Guest(tcp::socket s) : socket(std::move(s)), timer(socket.get_executor()) {}
  void close() {
    asio::error_code ignored;
    timer.cancel();
    socket.close(ignored);
  }
  tcp::socket socket;
  asio::steady_timer timer;
  HelloBytes bytes = {};
  Hello hello;
  std::array<uint8_t, 2 * kHelloBytes> answer = {};
};

void LinkListener::Impl::accept() {
  acceptor.async_accept([self = shared_from_this()](const asio::error_code& error, tcp::socket s) {
    if (self->closed) return;
    if (error) {
      self->pause.expires_after(std::chrono::milliseconds(20));
      self->pause.async_wait([self](const asio::error_code& stopped) {
        if (!stopped && !self->closed) self->accept();
      });
      return;
    }
    fcntl(s.native_handle(), F_SETFD, FD_CLOEXEC);
    ++self->count.accepted;
    if (static_cast<int>(self->strangers.size()) >= self->limits.max_strangers) {
      self->strangers.front()->close();
      self->strangers.pop_front();
    }
    auto guest = std::make_shared<Guest>(std::move(s));
    self->strangers.push_back(guest);
    self->greet(guest);
    self->accept();
  });
}

void LinkListener::Impl::greet(const std::shared_ptr<Guest>& guest) {
  guest->timer.expires_after(soon(limits.hello_s));
  guest->timer.async_wait([guest](const asio::error_code& stopped) {
    if (!stopped) guest->close();
  });
  asio::async_read(guest->socket, asio::buffer(guest->bytes),
                   [self = shared_from_this(), guest](const asio::error_code& error, size_t) {
                     guest->timer.cancel();
                     if (self->closed) return;
                     const auto hello = error ? std::nullopt : decode_hello(guest->bytes);
                     if (hello && equal_tokens(hello->token, self->token)) {
                       guest->hello = *hello;
                       self->strangers.remove(guest);
                       return self->examine(guest);
                     }
                     ++(hello ? self->count.wrong_token : self->count.malformed);
                     guest->close();
                     self->forget(guest);
                   });
}

void LinkListener::Impl::forget(const std::shared_ptr<Guest>& guest) {
  strangers.remove(guest);
  early.remove(guest);
}

void LinkListener::Impl::examine(const std::shared_ptr<Guest>& guest) {
  const Hello& hello = guest->hello;
  const std::pair key(hello.incarnation, hello.epoch);
  for (Door& door : doors) {
    if (std::pair(door.incarnation, door.epoch) != key) continue;
    Hello reply;
    const std::string refusal = door.examine(hello, reply);
    return answer(guest, refusal, reply, door.adopt);
  }
  if (newest && key <= *newest)
    return answer(guest,
                  fmt::format("incarnation {} epoch {} is over here; the newest is {} {}",
                              key.first, key.second, newest->first, newest->second),
                  {}, nullptr);
  if (static_cast<int>(early.size()) >= limits.max_early)
    return answer(guest, "too many connections wait for a later epoch", {}, nullptr);
  early.push_back(guest);
  guest->timer.expires_after(soon(limits.early_s));
  guest->timer.async_wait([self = shared_from_this(), guest](const asio::error_code& stopped) {
    if (stopped || self->closed) return;
    self->early.remove(guest);
    self->answer(guest, "this epoch was not opened here in time", {}, nullptr);
  });
}

void LinkListener::Impl::answer(const std::shared_ptr<Guest>& guest, const std::string& refusal,
                                const Hello& reply,
                                std::function<void(const Hello&, tcp::socket)> adopt) {
  ++(refusal.empty() ? count.linked : count.refused);
  const HelloBytes first = encode_answer(refusal);
  std::copy(first.begin(), first.end(), guest->answer.begin());
  size_t size = kHelloBytes;
  if (refusal.empty()) {
    const HelloBytes second = encode(reply);
    std::copy(second.begin(), second.end(), guest->answer.begin() + kHelloBytes);
    size += kHelloBytes;
    // The answer fits the empty socket buffer; what is not written at once is a broken link.
    asio::error_code error;
    guest->socket.non_blocking(true, error);
    const size_t put = guest->socket.write_some(asio::buffer(guest->answer, size), error);
    if (!error && put == size) return adopt(guest->hello, std::move(guest->socket));
    return guest->close();
  }
  guest->timer.expires_after(soon(limits.hello_s));
  guest->timer.async_wait([guest](const asio::error_code& stopped) {
    if (!stopped) guest->close();
  });
  asio::async_write(guest->socket, asio::buffer(guest->answer, size),
                    [guest](const asio::error_code&, size_t) { guest->close(); });
}

LinkListener::Impl::Doors::iterator LinkListener::Impl::open_door(Door door) {
  const std::pair key(door.incarnation, door.epoch);
  newest = newest ? std::max(*newest, key) : key;
  const auto opened = doors.insert(doors.end(), std::move(door));
  const auto waiting = std::exchange(early, {});
  for (const auto& guest : waiting) {
    guest->timer.cancel();
    examine(guest);
  }
  return opened;
}

void LinkListener::Impl::close() {
  closed = true;
  asio::error_code ignored;
  acceptor.close(ignored);
  pause.cancel();
  for (auto* guests : {&strangers, &early}) {
    for (const auto& guest : *guests) guest->close();
    guests->clear();
  }
}

LinkListener::LinkListener(Progress& progress, const std::string& address, uint16_t port,
                           std::string token, ListenerLimits limits) {
  if (token.empty() || token.size() > kMaxTokenBytes)
    throw ConfigError(
        fmt::format("listening for links: the job token has {} bytes; it must have "
                    "1 to {}",
                    token.size(), kMaxTokenBytes));
  impl_ = std::make_shared<Impl>(progress.context(), std::move(token), limits);
  try {
    const tcp::endpoint endpoint(asio::ip::make_address(address), port);
    impl_->acceptor.open(endpoint.protocol());
    impl_->acceptor.set_option(tcp::acceptor::reuse_address(true));
    prepare_socket(impl_->acceptor.native_handle());
    impl_->acceptor.bind(endpoint);
    impl_->acceptor.listen();
    impl_->port = impl_->acceptor.local_endpoint().port();
  } catch (const std::system_error& e) {
    throw CommError(
        fmt::format("listening for links on {} port {}: {}; choose a free port of this "
                    "host's numeric address",
                    address, port, e.what()));
  }
  asio::post(impl_->context, [impl = impl_] { impl->accept(); });
}

LinkListener::~LinkListener() {
  std::promise<void> done;
  asio::post(impl_->context, [&] {
    impl_->close();
    done.set_value();
  });
  done.get_future().wait();
}

uint16_t LinkListener::port() const { return impl_->port; }

LinkListener::Counters LinkListener::counters() const {
  const auto& c = impl_->count;
  return {c.accepted, c.malformed, c.wrong_token, c.refused, c.linked};
}

}  // namespace maniple

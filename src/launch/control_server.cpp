#include "launch/control_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/errors.h"
#include "links/wire.h"

namespace maniple {

using Acceptor = asio::basic_socket_acceptor<ControlProtocol>;

struct ControlServer::Impl : std::enable_shared_from_this<Impl> {
  // A connection that has not said hello.
  struct Stranger {
    Stranger(asio::io_context& context, ControlSocket socket)
        : connection(std::make_shared<Connection>(std::move(socket))), timer(context) {}
    std::shared_ptr<Connection> connection;
    asio::steady_timer timer;
  };
  using Strangers = std::list<Stranger>;

  Impl(asio::io_context& c, std::string t, Events e, ControlLimits l)
      : context(c), acceptor(c), pause(c), token(std::move(t)), events(std::move(e)), limits(l) {}

  void accept() {
    acceptor.async_accept(
        [self = shared_from_this()](const asio::error_code& error, ControlSocket s) {
          if (self->closed) return;
          if (error) return self->accept_later();
          fcntl(s.native_handle(), F_SETFD, FD_CLOEXEC);
          self->greet(std::move(s));
          self->accept();
        });
  }
  // Out of descriptors, most likely.
  void accept_later() {
    pause.expires_after(std::chrono::milliseconds(20));
    pause.async_wait([self = shared_from_this()](const asio::error_code& stopped) {
      if (!stopped && !self->closed) self->accept();
    });
  }

  void greet(ControlSocket socket) {
    ++count.accepted;
    if (strangers.size() >= limits.max_strangers) drop(strangers.begin());
    const auto at = strangers.emplace(strangers.end(), context, std::move(socket));
    at->timer.expires_after(std::chrono::milliseconds(static_cast<int64_t>(limits.hello_s * 1e3)));
    at->timer.async_wait([self = shared_from_this(), at](const asio::error_code& stopped) {
      if (!stopped && !self->closed) self->drop(at);
    });
    at->connection->listen(kLongestHello,
                           {[this, at](std::string_view payload) { hear(at, payload); },
                            [this, at](const std::string&) { drop(at); }});
  }
  void drop(Strangers::iterator at) {
    ++count.malformed;
    at->connection->close();
    strangers.erase(at);
  }

  void hear(Strangers::iterator at, std::string_view payload) {
    const auto hello = decode_control_hello(payload);
    if (!hello) return drop(at);
    const auto connection = at->connection;
    connection->listen(kLongestHello, {[](std::string_view) {}, [](const std::string&) {}});
    strangers.erase(at);
    if (!equal_tokens(hello->token, token)) {
      ++count.wrong_token;
      return connection->close();
    }
    const std::string refusal = events.judge(*hello);
    connection->send(encode_control_answer({refusal}));
    if (!refusal.empty()) {
      ++count.refused;
      return connection->close();
    }
    ++count.welcomed;
    events.arrived(*hello, connection);
  }

  asio::io_context& context;
  Acceptor acceptor;
  asio::steady_timer pause;
  const std::string token;
  Events events;
  const ControlLimits limits;
  Counters count;
  Strangers strangers;
  bool closed = false;
};

ControlServer::ControlServer(asio::io_context& context, const std::string& address,
                             std::string token, Events events, ControlLimits limits)
    : impl_(std::make_shared<Impl>(context, std::move(token), std::move(events), limits)) {
  const ControlProtocol::endpoint at = parse_control_address(address);
  asio::error_code error;
  impl_->acceptor.open(at.protocol(), error);
  if (!error) fcntl(impl_->acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
  if (!error) impl_->acceptor.set_option(Acceptor::reuse_address(true), error);
  if (!error) impl_->acceptor.bind(at, error);
  if (!error) impl_->acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) throw CommError(fmt::format("cannot listen on {}: {}", address, error.message()));
  impl_->accept();
}

ControlServer::ControlServer(asio::io_context& context, int listener, std::string token,
                             Events events, ControlLimits limits)
    : impl_(std::make_shared<Impl>(context, std::move(token), std::move(events), limits)) {
  sockaddr_storage address = {};
  socklen_t length = sizeof address;
  if (::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    throw CommError(fmt::format("descriptor {} is no socket to listen on", listener));
  fcntl(listener, F_SETFD, FD_CLOEXEC);
  impl_->acceptor.assign(ControlProtocol(address.ss_family, IPPROTO_TCP), listener);
  impl_->accept();
}

ControlServer::~ControlServer() {
  impl_->closed = true;
  asio::error_code ignored;
  impl_->acceptor.close(ignored);
  impl_->pause.cancel();
  for (auto& stranger : impl_->strangers) stranger.connection->close();
  impl_->strangers.clear();
}

uint16_t ControlServer::port() const {
  const ControlProtocol::endpoint at = impl_->acceptor.local_endpoint();
  asio::ip::tcp::endpoint tcp;
  std::memcpy(tcp.data(), at.data(), std::min(at.size(), tcp.capacity()));
  return tcp.port();
}

const ControlServer::Counters& ControlServer::counters() const { return impl_->count; }

int open_control_listener(const std::string& address) {
  const ControlProtocol::endpoint at = parse_control_address(address);
  const int fd = ::socket(at.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd >= 0 && ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
      ::bind(fd, at.data(), static_cast<socklen_t>(at.size())) == 0 && ::listen(fd, 1024) == 0)
    return fd;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  throw CommError(fmt::format("cannot listen on {}: {}", address, std::strerror(error)));
}

std::string control_address_of(int listener) {
  asio::ip::tcp::endpoint at;
  auto length = static_cast<socklen_t>(at.capacity());
  MANIPLE_INVARIANT(::getsockname(listener, at.data(), &length) == 0, "descriptor {}", listener);
  return at.address().is_v6() ? fmt::format("tcp:[{}]:{}", at.address().to_string(), at.port())
                              : fmt::format("tcp:{}:{}", at.address().to_string(), at.port());
}

}  // namespace maniple

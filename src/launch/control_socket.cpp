#include "launch/control_socket.h"

#include <netinet/tcp.h>

#include <charconv>

#include "core/errors.h"

namespace maniple {

ControlProtocol::endpoint parse_control_address(const std::string& address) {
  if (address.starts_with("unix:") && address.size() > 5 && address.size() < 5 + 108)
    return asio::local::stream_protocol::endpoint(address.substr(5));
  if (const size_t colon = address.rfind(':'); address.starts_with("tcp:") && colon > 4) {
    std::string host = address.substr(4, colon - 4);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']')
      host = host.substr(1, host.size() - 2);
    uint16_t port = 0;
    const char* end = address.data() + address.size();
    const auto [rest, bad] = std::from_chars(address.data() + colon + 1, end, port);
    asio::error_code error;
    const auto ip = asio::ip::make_address(host, error);
    if (!error && bad == std::errc() && rest == end) return asio::ip::tcp::endpoint(ip, port);
  }
  throw ConfigError(fmt::format(
      "'{}' is no control address; write unix:/path (up to 107 characters) or tcp:IP:PORT",
      address));
}

std::string control_address(const std::string& ip, uint16_t port) {
  asio::error_code error;
  const auto numeric = asio::ip::make_address(ip, error);
  if (error)
    throw ConfigError(
        fmt::format("'{}' is no numeric address; write one such as 10.0.0.4 or fd00::4", ip));
  return numeric.is_v6() ? fmt::format("tcp:[{}]:{}", ip, port) : fmt::format("tcp:{}:{}", ip, port);
}

std::string ip_of_control_address(const std::string& address) {
  const ControlProtocol::endpoint at = parse_control_address(address);
  asio::ip::tcp::endpoint tcp;
  if (at.protocol().family() != AF_INET && at.protocol().family() != AF_INET6)
    throw ConfigError(fmt::format("'{}' has no numeric address", address));
  std::memcpy(tcp.data(), at.data(), std::min(at.size(), tcp.capacity()));
  return tcp.address().to_string();
}

Connection::Connection(ControlSocket socket) : socket_(std::move(socket)) {
  const int on = 1;  // fails on sockets of the file system, where there is nothing to switch off
  setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void Connection::listen(size_t longest, Events events) {
  longest_ = longest;
  events_ = std::make_shared<Events>(std::move(events));
  if (!reading_ && !closed_) read();
}

void Connection::read() {
  reading_ = true;
  socket_.async_read_some(asio::buffer(chunk_),
                          [self = shared_from_this()](const asio::error_code& error, size_t n) {
                            self->reading_ = false;
                            if (self->closed_) return;
                            if (error) return self->end(error.message());
                            self->in_.append(self->chunk_.data(), n);
                            self->take_frames();
                            if (!self->closed_ && !self->reading_) self->read();
                          });
}

void Connection::take_frames() {
  size_t at = 0;
  while (!closed_) {
    const FrameView frame = read_frame(std::string_view(in_).substr(at), longest_);
    if (frame.state == FrameState::kPartial) break;
    if (frame.state == FrameState::kBad) return end("bytes that are no frame");
    at += frame.size;
    const auto events = events_;  // which the call may replace
    reading_ = true;              // and which then must not start a second read
    events->frame(frame.payload);
    reading_ = false;
  }
  in_.erase(0, at);
}

void Connection::send(std::string frame) {
  if (closed_) return;
  backlog_ += frame.size();
  if (backlog_ > kLongestBacklog) return end("the other side does not read");
  out_.push_back(std::move(frame));
  if (!writing_) write();
}

void Connection::write() {
  writing_ = true;
  asio::async_write(socket_, asio::buffer(out_.front()),
                    [self = shared_from_this()](const asio::error_code& error, size_t) {
                      self->writing_ = false;
                      if (self->closed_) return;
                      if (error) return self->end(error.message());
                      self->backlog_ -= self->out_.front().size();
                      self->out_.pop_front();
                      if (!self->out_.empty()) self->write();
                    });
}

void Connection::close() {
  closed_ = true;
  events_.reset();
  asio::error_code ignored;
  socket_.close(ignored);
}

void Connection::end(const std::string& reason) {
  if (closed_) return;
  const auto events = events_;
  close();
  events->closed(reason);
}

}  // namespace maniple

// Where control connections go to, and one such connection: frames in, frames out. Every member
// function and every call back of this file runs on the one thread that runs the io_context.
#pragma once

#include <asio.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "elastic/wire.h"

namespace maniple {

using ControlProtocol = asio::generic::stream_protocol;
using ControlSocket = ControlProtocol::socket;

// "unix:/path" or "tcp:10.0.0.4:5000" (numeric, "tcp:[::1]:5000"). Throws ConfigError.
ControlProtocol::endpoint parse_control_address(const std::string& address);

// "tcp:IP:PORT"; and the IP of one. Throw ConfigError when it is no numeric address.
std::string control_address(const std::string& ip, uint16_t port);
std::string ip_of_control_address(const std::string& address);

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  struct Events {
    std::function<void(std::string_view payload)> frame;
    // The connection has ended by itself: reset, end of file, bytes that are no frame, or the other
    // side does not read. Called once, and not after close().
    std::function<void(const std::string& reason)> closed;
  };

  explicit Connection(ControlSocket socket);

  // Begins to read, or changes who hears of what is read. A frame longer than `longest` ends it.
  void listen(size_t longest, Events events);
  // Queues a whole frame; never waits. Dropped once the connection has ended.
  void send(std::string frame);
  void close();
  bool open() const { return !closed_; }

 private:
  static constexpr size_t kLongestBacklog = 64 << 20;

  void read();
  void take_frames();
  void write();
  void end(const std::string& reason);

  ControlSocket socket_;
  std::shared_ptr<Events> events_;
  size_t longest_ = 0;
  bool closed_ = false, reading_ = false, writing_ = false;
  std::string in_;
  std::array<char, 1 << 16> chunk_;
  std::deque<std::string> out_;
  size_t backlog_ = 0;
};

}  // namespace maniple

// The connecting end of a control connection: says hello, hears the answer, and connects again
// whenever the connection ends, until close(). On the io_context's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "elastic/types.h"
#include "launch/control_socket.h"
#include "launch/control_wire.h"

namespace maniple {

class ControlClient : public std::enable_shared_from_this<ControlClient> {
 public:
  struct Events {
    std::function<void()> connected;  // welcomed, each time
    std::function<void(std::string_view payload)> frame;
    // An attempt has failed or the connection has ended; the next attempt comes after `retry`.
    std::function<void(const std::string& reason)> lost;
  };
  // `answer`: time to wait for the answer to the hello; it covers a coordinator's restart.
  ControlClient(asio::io_context& context, const std::string& address, const ControlHello& hello,
                Time retry, Time answer, Events events);

  void start();
  void renew(const std::string& reason);  // gives the connection up and connects again
  void close();                           // no more events
  bool connected() const { return welcomed_; }
  void send(std::string frame);  // dropped while not connected

 private:
  void connect();
  void hear(std::string_view payload);
  void lose(const std::string& reason);

  asio::io_context& context_;
  asio::steady_timer timer_;
  const ControlProtocol::endpoint to_;
  const std::string hello_;
  const std::chrono::microseconds retry_, answer_;
  Events events_;
  std::shared_ptr<ControlSocket> dialing_;
  std::shared_ptr<Connection> connection_;
  bool welcomed_ = false, closed_ = false;
};

}  // namespace maniple

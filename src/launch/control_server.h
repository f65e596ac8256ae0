// The port of a process that others of the job connect to. A stranger gets nothing: no answer
// without the job token, one frame of at most 256 bytes within the time allowed or the connection
// is closed, a bounded number of connections that have not said hello (the oldest goes first). The
// token is compared in constant time.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <string>

#include "launch/control_socket.h"
#include "launch/control_wire.h"

namespace maniple {

struct ControlLimits {
  double hello_s = 2;  // from accept to the whole hello
  size_t max_strangers = 64;
};

// On the io_context's thread, its destructor too.
class ControlServer {
 public:
  struct Events {
    // Whether a hello with the right token is taken: a reason against it, or empty.
    std::function<std::string(const ControlHello&)> judge;
    // It was, and was told so. The connection is the callee's, who calls listen().
    std::function<void(const ControlHello&, std::shared_ptr<Connection>)> arrived;
  };
  struct Counters {
    uint64_t accepted = 0;     // connections
    uint64_t malformed = 0;    // closed: no hello, or not in time
    uint64_t wrong_token = 0;  // closed without an answer
    uint64_t refused = 0;      // answered with a reason
    uint64_t welcomed = 0;
  };

  // Binds to this address and no other; TCP port 0 lets the system choose. Throws CommError.
  ControlServer(asio::io_context& context, const std::string& address, std::string token,
                Events events, ControlLimits limits = {});
  // Takes over a listening TCP socket, as a restarted coordinator does: who connected meanwhile
  // waits in it.
  ControlServer(asio::io_context& context, int listener, std::string token, Events events,
                ControlLimits limits = {});
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  uint16_t port() const;  // of a TCP address
  const Counters& counters() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// A listening TCP socket for ControlServer, to be handed to a child. Throws CommError, ConfigError.
int open_control_listener(const std::string& address);
// "tcp:IP:PORT" of a listening socket.
std::string control_address_of(int listener);

}  // namespace maniple

// Connecting to the equal position of another slice: hello, answer, and the other side's hello.
// Private to src/links; progress thread.
#pragma once

#include <asio.hpp>
#include <functional>
#include <memory>
#include <string>

#include "links/wire.h"

namespace maniple {

class Dial : public std::enable_shared_from_this<Dial> {
 public:
  // done(socket, reply): the other side accepted and sent `reply`, to be examined by the caller.
  // refused(reason): final. Connections that fail or end without an answer are tried again, every
  // 10 ms, until close().
  struct Events {
    std::function<void(asio::ip::tcp::socket, const Hello& reply)> done;
    std::function<void(const std::string& reason)> refused;
  };
  Dial(asio::io_context& context, asio::ip::tcp::endpoint to, const Hello& hello, Events events);

  void start();
  void close();
  const std::string& last_trouble() const { return trouble_; }

 private:
  void retry(const std::string& why);
  void read_answer();
  void read_reply();

  asio::ip::tcp::socket socket_;
  asio::steady_timer timer_;
  const asio::ip::tcp::endpoint to_;
  const HelloBytes hello_;
  HelloBytes in_ = {};
  Events events_;
  std::string trouble_ = "no connection yet";
  bool closed_ = false;
};

}  // namespace maniple

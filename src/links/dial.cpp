#include "links/dial.h"

#include "links/socket_options.h"

namespace maniple {

using asio::ip::tcp;

Dial::Dial(asio::io_context& context, tcp::endpoint to, const Hello& hello, Events events)
    : socket_(context),
      timer_(context),
      to_(std::move(to)),
      hello_(encode(hello)),
      events_(std::move(events)) {}

void Dial::start() {
  if (closed_) return;
  asio::error_code error;
  socket_.open(to_.protocol(), error);
  if (error) return retry(error.message());
  prepare_socket(socket_.native_handle());
  socket_.async_connect(to_, [self = shared_from_this()](const asio::error_code& failed) {
    if (self->closed_) return;
    if (failed) return self->retry(failed.message());
    asio::async_write(self->socket_, asio::buffer(self->hello_),
                      [self](const asio::error_code& broken, size_t) {
                        if (self->closed_) return;
                        if (broken) return self->retry(broken.message());
                        self->read_answer();
                      });
  });
}

void Dial::close() {
  closed_ = true;
  events_ = {};
  asio::error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
}

void Dial::retry(const std::string& why) {
  trouble_ = why;
  asio::error_code ignored;
  socket_.close(ignored);
  timer_.expires_after(std::chrono::milliseconds(10));
  timer_.async_wait([self = shared_from_this()](const asio::error_code& stopped) {
    if (!stopped) self->start();
  });
}

void Dial::read_answer() {
  trouble_ = "connected; no answer to the hello yet";
  asio::async_read(
      socket_, asio::buffer(in_),
      [self = shared_from_this()](const asio::error_code& error, size_t) {
        if (self->closed_) return;
        if (error)
          return self->retry("the connection ended without an answer (another job's token?)");
        const auto refusal = decode_answer(self->in_);
        if (!refusal) return self->retry("the answer is not one of this program");
        if (refusal->empty()) return self->read_reply();
        const auto refused = self->events_.refused;
        self->close();
        refused(*refusal);
      });
}

void Dial::read_reply() {
  asio::async_read(socket_, asio::buffer(in_),
                   [self = shared_from_this()](const asio::error_code& error, size_t) {
                     if (self->closed_) return;
                     if (error) return self->retry(error.message());
                     const auto reply = decode_hello(self->in_);
                     if (!reply) return self->retry("the hello is not one of this program");
                     const auto done = self->events_.done;
                     auto socket = std::move(self->socket_);
                     self->close();
                     done(std::move(socket), *reply);
                   });
}

}  // namespace maniple

#include "launch/control_client.h"

#include <fcntl.h>

namespace maniple {

ControlClient::ControlClient(asio::io_context& context, const std::string& address,
                             const ControlHello& hello, Time retry, Time answer, Events events)
    : context_(context),
      timer_(context),
      to_(parse_control_address(address)),
      hello_(encode_hello(hello)),
      retry_(retry),
      answer_(answer),
      events_(std::move(events)) {}

void ControlClient::start() { connect(); }

void ControlClient::renew(const std::string& reason) {
  if (welcomed_) lose(reason);
}

void ControlClient::connect() {
  dialing_ = std::make_shared<ControlSocket>(context_);
  timer_.expires_after(answer_);
  timer_.async_wait([self = shared_from_this()](const asio::error_code& stopped) {
    if (!stopped && !self->closed_) self->lose("no answer");
  });
  dialing_->async_connect(
      to_, [self = shared_from_this(), socket = dialing_](const asio::error_code& error) {
        if (self->closed_ || socket != self->dialing_) return;
        if (error) return self->lose(error.message());
        fcntl(socket->native_handle(), F_SETFD, FD_CLOEXEC);
        self->connection_ = std::make_shared<Connection>(std::move(*socket));
        self->dialing_.reset();
        self->connection_->listen(kLongestFrame,
                                  {[self](std::string_view payload) { self->hear(payload); },
                                   [self](const std::string& reason) { self->lose(reason); }});
        self->connection_->send(self->hello_);
      });
}

void ControlClient::hear(std::string_view payload) {
  if (closed_) return;
  if (welcomed_) return events_.frame(payload);
  const auto answer = decode_control_answer(payload);
  if (!answer) return lose("the other side does not speak this version");
  if (!answer->refusal.empty()) return lose("refused: " + answer->refusal);
  timer_.cancel();
  welcomed_ = true;
  events_.connected();
}

void ControlClient::lose(const std::string& reason) {
  if (closed_) return;
  welcomed_ = false;
  dialing_.reset();
  if (connection_) connection_->close();
  connection_.reset();
  timer_.expires_after(retry_);
  timer_.async_wait([self = shared_from_this()](const asio::error_code& stopped) {
    if (!stopped && !self->closed_) self->connect();
  });
  events_.lost(reason);
}

void ControlClient::send(std::string frame) {
  if (welcomed_) connection_->send(std::move(frame));
}

void ControlClient::close() {
  closed_ = true;
  welcomed_ = false;
  timer_.cancel();
  dialing_.reset();
  if (connection_) connection_->close();
  connection_.reset();
}

}  // namespace maniple

// Private to src/links: what link sets and the listener know of each other. Progress thread.
#pragma once

#include <asio.hpp>
#include <atomic>
#include <functional>
#include <list>
#include <optional>

#include "links/link_listener.h"
#include "links/wire.h"

namespace maniple {

struct LinkListener::Impl : std::enable_shared_from_this<LinkListener::Impl> {
  // A link set that waits for hellos of its epoch. The answer: empty (and `reply` filled) when the
  // socket is to become a link, which `adopt` then does after the answer was written.
  struct Door {
    uint64_t incarnation, epoch;
    std::function<std::string(const Hello&, Hello& reply)> examine;
    std::function<void(const Hello&, asio::ip::tcp::socket)> adopt;
  };
  using Doors = std::list<Door>;

  Impl(asio::io_context& context, std::string token, ListenerLimits limits)
      : context(context),
        acceptor(context),
        pause(context),
        token(std::move(token)),
        limits(limits) {}

  void accept();
  void close();
  Doors::iterator open_door(Door door);  // serves the hellos that came early
  void close_door(Doors::iterator door) { doors.erase(door); }

  struct Guest;  // an accepted connection that is no link yet
  void greet(const std::shared_ptr<Guest>& guest);
  void examine(const std::shared_ptr<Guest>& guest);
  void answer(const std::shared_ptr<Guest>& guest, const std::string& refusal, const Hello& reply,
              std::function<void(const Hello&, asio::ip::tcp::socket)> adopt);
  void forget(const std::shared_ptr<Guest>& guest);

  asio::io_context& context;
  asio::ip::tcp::acceptor acceptor;
  asio::steady_timer pause;  // after an accept that failed (descriptors used up)
  const std::string token;
  const ListenerLimits limits;
  uint16_t port = 0;
  bool closed = false;
  Doors doors;
  std::optional<std::pair<uint64_t, uint64_t>> newest;  // (incarnation, epoch) ever opened
  std::list<std::shared_ptr<Guest>> strangers, early;
  struct {
    std::atomic<uint64_t> accepted = 0, malformed = 0, wrong_token = 0, refused = 0, linked = 0;
  } count;
};

}  // namespace maniple

// One established connection to the equal position of another slice, for one epoch. Everything here
// runs on the progress thread. A link is made after both hellos were accepted and never comes back
// once closed: only a new epoch connects again.
#pragma once

#include <asio.hpp>
#include <deque>
#include <memory>
#include <vector>

#include "links/operation.h"
#include "links/wire.h"

namespace maniple {

// What a link tells and asks the set it belongs to.
class LinkOwner {
 public:
  enum class Verdict { kTake, kHold, kDrop };

  // Whose frame is this? kTake fills operation; kHold stops reading until resume().
  virtual Verdict judge(int peer, const FrameHeader& header,
                        std::shared_ptr<Operation>& operation) = 0;
  // Tags a frame that is about to be sent.
  virtual FrameHeader header_of(const Operation& operation) const = 0;
  virtual void piece_sent(int peer, const std::shared_ptr<Operation>& operation, size_t bytes) = 0;
  virtual void piece_received(int peer, const std::shared_ptr<Operation>& operation) = 0;
  virtual void link_failed(int peer, const std::string& reason) = 0;  // closes the link
  virtual void link_left(int peer) = 0;                               // closes the link

 protected:
  ~LinkOwner() = default;
};

class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(asio::ip::tcp::socket socket, int peer, LinkOwner& owner);

  void start();
  void send(std::shared_ptr<Operation> operation);  // queued; its pieces go out in order
  void resume();                                    // a frame that was held is judged again
  // Forgets an operation: a frame of it that is half sent is finished from a copy, one that is half
  // received is read and dropped. Its memory is not touched afterwards.
  void forget(const Operation* operation);
  void say_goodbye(FrameHeader header);  // if nothing is under way; best effort
  void close();                          // the owner is not called any more
  int descriptor() { return socket_.native_handle(); }

 private:
  class Room : public Operation::Buffer {
   public:
    std::span<uint8_t> take(int64_t bytes) override;
    bool holds(const uint8_t* p) const { return p >= bytes_.get() && p < bytes_.get() + size_; }

   private:
    std::unique_ptr<uint8_t[]> bytes_;
    int64_t size_ = 0;
  };

  void watch_readable();
  void watch_writable();
  void on_readable();
  void on_writable();
  bool read_some();   // false: nothing to read now, or the link is held or closed
  bool write_some();  // false: no room now, nothing to send, or closed
  void begin_frame();
  void end_frame();
  void judge();
  void begin_piece();
  void fail(const std::string& reason);

  asio::ip::tcp::socket socket_;
  const int peer_;
  LinkOwner* owner_;
  bool closed_ = false, reading_ = false, writing_ = false;

  // Receiving. While a payload is read, the bytes behind it are the next header's.
  FrameHeaderBytes in_header_bytes_ = {};
  size_t in_header_have_ = 0;
  bool in_payload_ = false, held_ = false;
  FrameHeader in_header_;
  std::shared_ptr<Operation> in_operation_;  // none: the payload is dropped
  Operation::Announced in_announced_ = {};
  std::span<uint8_t> in_target_;
  size_t in_have_ = 0;
  Room in_room_, drop_room_;

  // Sending.
  std::deque<std::shared_ptr<Operation>> queue_;
  std::shared_ptr<Operation> out_operation_;  // of the frame under way; none: it was forgotten
  FrameHeaderBytes out_header_bytes_ = {};
  std::span<const uint8_t> out_payload_;
  size_t out_have_ = 0;  // of header and payload
  bool out_frame_ = false;
  Room out_room_;
};

}  // namespace maniple

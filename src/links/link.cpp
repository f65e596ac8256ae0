#include "links/link.h"

#include <algorithm>
#include <cstring>

#include "core/errors.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

// Frames that a link may read or write before the others have their turn.
constexpr int kTurn = 4;

bool would_block(const asio::error_code& error) {
  return error == asio::error::would_block || error == asio::error::try_again ||
         error == asio::error::interrupted;
}

}  // namespace

std::span<uint8_t> Link::Room::take(int64_t bytes) {
  if (bytes > size_) {
    bytes_ = std::make_unique_for_overwrite<uint8_t[]>(bytes);
    size_ = bytes;
  }
  return {bytes_.get(), static_cast<size_t>(bytes)};
}

Link::Link(asio::ip::tcp::socket socket, int peer, LinkOwner& owner)
    : socket_(std::move(socket)), peer_(peer), owner_(&owner) {}

void Link::start() {
  asio::error_code ignored;
  socket_.non_blocking(true, ignored);
  watch_readable();
}

void Link::close() {
  if (closed_) return;
  closed_ = true;
  queue_.clear();
  in_operation_ = out_operation_ = nullptr;
  asio::error_code ignored;
  socket_.close(ignored);
}

void Link::fail(const std::string& reason) {
  if (!closed_) owner_->link_failed(peer_, reason);
}

void Link::watch_readable() {
  if (closed_ || reading_ || held_) return;
  reading_ = true;
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this()](const asio::error_code&) {
                       self->reading_ = false;
                       if (!self->closed_) self->on_readable();
                     });
}

void Link::watch_writable() {
  if (closed_ || writing_) return;
  writing_ = true;
  socket_.async_wait(asio::socket_base::wait_write,
                     [self = shared_from_this()](const asio::error_code&) {
                       self->writing_ = false;
                       if (!self->closed_) self->on_writable();
                     });
}

// --- Receiving ---------------------------------------------------------------------------------

void Link::on_readable() {
  for (int i = 0; i < kTurn; ++i)
    if (!read_some()) break;
  watch_readable();
}

void Link::resume() {
  if (closed_ || !held_) return;
  held_ = false;
  judge();
  watch_readable();
}

bool Link::read_some() {
  if (closed_ || held_) return false;
  const size_t payload = in_payload_ ? in_target_.size() - in_have_ : 0;
  const size_t wanted = payload + kFrameHeaderBytes - in_header_have_;
  const std::array<asio::mutable_buffer, 2> into = {
      asio::mutable_buffer(in_target_.data() + in_have_, payload),
      asio::mutable_buffer(in_header_bytes_.data() + in_header_have_,
                           kFrameHeaderBytes - in_header_have_)};
  asio::error_code error;
  const size_t got = socket_.read_some(into, error);
  if (would_block(error)) return false;
  if (error) {
    fail(error == asio::error::eof ? "closed by the other end" : error.message());
    return false;
  }
  const size_t of_payload = std::min(got, payload);
  in_have_ += of_payload;
  in_header_have_ += got - of_payload;
  if (in_payload_ && of_payload == payload) end_frame();
  if (!closed_ && !in_payload_ && in_header_have_ == kFrameHeaderBytes) begin_frame();
  return got == wanted;
}

void Link::begin_frame() {
  const auto header = decode_frame_header(in_header_bytes_);
  if (!header) return fail("corrupted: bytes that are no frame");
  in_header_ = *header;
  in_header_have_ = 0;
  if (header->encoding == kGoodbye) return owner_->link_left(peer_);
  judge();
}

void Link::judge() {
  switch (owner_->judge(peer_, in_header_, in_operation_)) {
    case LinkOwner::Verdict::kHold:
      held_ = true;
      return;
    case LinkOwner::Verdict::kDrop:
      in_operation_ = nullptr;
      break;
    case LinkOwner::Verdict::kTake:
      break;
  }
  if (!closed_) begin_piece();
}

void Link::begin_piece() {
  in_have_ = 0;
  in_announced_ = {in_header_.bytes, in_header_.encoding, in_header_.note};
  if (in_operation_) {
    try {
      in_target_ =
          in_operation_->place(peer_, in_operation_->received_[peer_], in_announced_, in_room_);
    } catch (const std::exception& e) {
      return fail(e.what());
    }
  } else {
    in_target_ = drop_room_.take(in_header_.bytes);
  }
  in_payload_ = true;
  if (in_target_.empty()) end_frame();
}

void Link::end_frame() {
  in_payload_ = false;
  const std::shared_ptr<Operation> operation = std::move(in_operation_);
  in_operation_ = nullptr;
  if (!operation) return;
  if (message_hash(in_target_) != in_header_.payload_hash)
    return fail("corrupted: a payload does not have the hash that was sent with it");
  try {
    operation->consume(peer_, operation->received_[peer_], in_announced_, in_target_);
  } catch (const std::exception& e) {
    return fail(e.what());
  }
  owner_->piece_received(peer_, operation);
}

// --- Sending -----------------------------------------------------------------------------------

void Link::send(std::shared_ptr<Operation> operation) {
  if (closed_) return;
  queue_.push_back(std::move(operation));
  watch_writable();
}

void Link::on_writable() {
  for (int i = 0; i < kTurn; ++i)
    if (!write_some()) return;
  if (out_frame_ || !queue_.empty()) watch_writable();
}

bool Link::write_some() {
  if (closed_) return false;
  if (!out_frame_) {
    if (queue_.empty()) return false;
    out_operation_ = queue_.front();
    Operation& operation = *out_operation_;
    const int64_t index = operation.sent_[peer_];
    Operation::Piece piece;
    try {
      piece = operation.produce(peer_, index, out_room_);
    } catch (const std::exception& e) {
      fail(e.what());
      return false;
    }
    FrameHeader header = owner_->header_of(operation);
    header.bytes = static_cast<uint32_t>(piece.bytes.size());
    header.piece = static_cast<uint32_t>(index);
    header.encoding = piece.encoding;
    header.note = piece.note;
    header.payload_hash = piece.hash;
    out_header_bytes_ = encode(header);
    out_payload_ = piece.bytes;
    out_have_ = 0;
    out_frame_ = true;
  }
  const size_t of_header = std::min(out_have_, kFrameHeaderBytes);
  const size_t of_payload = out_have_ - of_header;
  const std::array<asio::const_buffer, 2> from = {
      asio::const_buffer(out_header_bytes_.data() + of_header, kFrameHeaderBytes - of_header),
      asio::const_buffer(out_payload_.data() + of_payload, out_payload_.size() - of_payload)};
  asio::error_code error;
  const size_t put = socket_.write_some(from, error);
  if (error && !would_block(error)) {
    fail(error.message());
    return false;
  }
  out_have_ += put;
  if (out_have_ < kFrameHeaderBytes + out_payload_.size()) {
    watch_writable();
    return false;
  }
  out_frame_ = false;
  const std::shared_ptr<Operation> operation = std::move(out_operation_);
  out_operation_ = nullptr;
  if (operation) {
    if (operation->sent_[peer_] + 1 == operation->to_send_[peer_]) queue_.pop_front();
    owner_->piece_sent(peer_, operation, out_payload_.size());
  }
  return !closed_;
}

void Link::say_goodbye(FrameHeader header) {
  if (closed_ || out_frame_ || !queue_.empty()) return;
  header.encoding = kGoodbye;
  asio::error_code ignored;
  socket_.write_some(asio::buffer(encode(header)), ignored);
}

void Link::forget(const Operation* operation) {
  std::erase_if(queue_, [&](const auto& queued) { return queued.get() == operation; });
  if (out_operation_.get() == operation) {
    if (!out_payload_.empty() && !out_room_.holds(out_payload_.data())) {
      const auto copy = out_room_.take(static_cast<int64_t>(out_payload_.size()));
      std::memcpy(copy.data(), out_payload_.data(), copy.size());
      out_payload_ = copy;
    }
    out_operation_ = nullptr;
  }
  if (in_operation_.get() == operation) {
    if (!in_room_.holds(in_target_.data()))
      in_target_ = drop_room_.take(static_cast<int64_t>(in_target_.size()));
    in_operation_ = nullptr;
  }
}

}  // namespace maniple

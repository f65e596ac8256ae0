// What is moved over the links of an epoch: an operation has, for each peer, a number of pieces to
// send and a number to receive, in order. The links call it while sockets have room or bytes, so
// that packing, checking and adding are done piece by piece between the copies of the kernel.
//
// A derived class implements produce, place and consume; all three are called by the progress
// thread only, never at the same time, and never after the operation has ended. They may throw
// CommError when what a peer sent makes no sense: its link is given up.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace maniple {

class Operation : public std::enable_shared_from_this<Operation> {
 public:
  // Pieces per member of the link set; those of this member itself are 0.
  Operation(std::vector<int64_t> to_send, std::vector<int64_t> to_receive);
  virtual ~Operation() = default;
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  struct Piece {
    std::span<const uint8_t> bytes;  // in `buffer`, or in memory that outlives the operation's end
    uint64_t hash = 0;               // message_hash(bytes)
    uint32_t encoding = 0;           // as the frame carries them
    std::array<uint64_t, 2> note = {};
  };
  // Room that produce and place may use: at least `bytes`, kept by the link until the piece is
  // over.
  class Buffer {
   public:
    virtual ~Buffer() = default;
    virtual std::span<uint8_t> take(int64_t bytes) = 0;
  };
  struct Announced {
    int64_t bytes;
    uint32_t encoding;
    std::array<uint64_t, 2> note;
  };

  virtual Piece produce(int peer, int64_t piece, Buffer& buffer) = 0;
  // Where the announced bytes go: exactly announced.bytes long.
  virtual std::span<uint8_t> place(int peer, int64_t piece, const Announced& announced,
                                   Buffer& buffer) = 0;
  // The bytes are there and their hash is right.
  virtual void consume(int peer, int64_t piece, const Announced& announced,
                       std::span<const uint8_t> bytes) = 0;

 private:
  friend class Link;
  friend class LinkSet;
  enum class State { kNew, kRunning, kDone, kFailed };

  // Of the progress thread.
  std::vector<int64_t> to_send_, to_receive_, sent_, received_;
  int64_t open_ = 0;  // directions that are not through yet
  uint32_t sequence_ = 0;
  uint64_t step_ = 0;
  uint32_t attempt_ = 0;
  // Under the link set's mutex.
  State state_ = State::kNew;
  std::string error_;
};

}  // namespace maniple

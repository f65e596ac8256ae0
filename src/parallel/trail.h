// What a rank computed in a step, as hashes in program order: inputs of layers, everything that it
// sent to other ranks of its slice, gradients, their sums. Two executions of the same units on healthy devices leave
// equal trails; of a wrong one, the rank whose trail differs first is where the error arose.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace maniple {

class Trail {
 public:
  enum class Kind { kInput, kSent, kGradient, kSums };
  struct Point {
    Kind kind;
    int64_t layer;  // the one that a forward reached last
    uint64_t hash;
  };

  void start();                 // forgets the points; records until stop()
  std::vector<Point> stop();
  bool recording() const { return recording_; }
  // Nothing without recording.
  void reach_layer(int64_t layer, const at::Tensor& input);
  void send(const at::Tensor& data);
  void end_unit(const std::function<uint64_t()>& gradient_hash);
  void end_step(const std::function<uint64_t()>& sums_hash);

 private:
  void add(Kind kind, const at::Tensor& data);
  bool recording_ = false;
  int64_t layer_ = 0;
  std::vector<Point> points_;
};

// "the input of layer 3"
std::string describe(const Trail::Point& point);

// Forwards to `inner` and leaves what is sent on the trail, which must outlive it.
std::unique_ptr<Communicator> make_recorded(std::unique_ptr<Communicator> inner, Trail& trail);

}  // namespace maniple

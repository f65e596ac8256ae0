// Working memory of one task: buffers of the thread that grow to what its largest task needs and
// stay. One Scratch lives per thread at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>

namespace maniple {

class Scratch {
 public:
  // n elements, 64-byte aligned, uninitialised, valid for the life of this object.
  template <typename T>
  T* take(int64_t n) {
    return reinterpret_cast<T*>(take_bytes(n * static_cast<int64_t>(sizeof(T))));
  }

 private:
  static constexpr int64_t kAlign = 64;
  struct Buffer {
    std::unique_ptr<char[]> memory;
    int64_t bytes = 0;
  };
  char* take_bytes(int64_t n) {
    thread_local std::deque<Buffer> buffers;
    if (used_ == buffers.size()) buffers.emplace_back();
    Buffer& b = buffers[used_++];
    if (b.bytes < n + kAlign) {
      b.memory.reset(new char[n + kAlign]);
      b.bytes = n + kAlign;
    }
    const auto address = reinterpret_cast<intptr_t>(b.memory.get());
    return reinterpret_cast<char*>((address + kAlign - 1) / kAlign * kAlign);
  }

  size_t used_ = 0;
};

}  // namespace maniple

// Working memory of one task: buffers of the thread that grow to what its largest task needs and
// stay. One Scratch lives per thread at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <new>

namespace maniple {

class Scratch {
 public:
  // n elements, 64-byte aligned, uninitialised, valid for the life of this object.
  template <typename T>
  T* take(int64_t n) {
    return reinterpret_cast<T*>(take_bytes(n * static_cast<int64_t>(sizeof(T))));
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Delete {
    void operator()(char* memory) const { ::operator delete[](memory, kAlign); }
  };
  struct Buffer {
    std::unique_ptr<char[], Delete> memory;
    int64_t bytes = -1;
  };
  char* take_bytes(int64_t n) {
    thread_local std::deque<Buffer> buffers;
    if (used_ == buffers.size()) buffers.emplace_back();
    Buffer& b = buffers[used_++];
#ifdef __SANITIZE_ADDRESS__
    b.bytes = -1;  // of exactly this size, so that the sanitizer sees its end
#endif
    if (b.bytes < n) {
      b.memory.reset(static_cast<char*>(::operator new[](n, kAlign)));
      b.bytes = n;
    }
    return b.memory.get();
  }

  size_t used_ = 0;
};

}  // namespace maniple

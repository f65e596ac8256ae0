// Storage for an exploration: values that are equal get one number, transitions between them are
// computed once, visited states are kept as fingerprints.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace maniple::model {

using Id = uint32_t;  // 0: none

struct Key {
  uint64_t low = 0, high = 0;
  bool operator==(const Key&) const = default;
};
inline Key fingerprint(const void* data, size_t size) {
  const XXH128_hash_t hash = XXH3_128bits(data, size);
  return {hash.low64, hash.high64};
}

// Key -> number, open addressing.
class Memo {
 public:
  // The number of the key, 0 when there is none yet.
  uint32_t& operator[](const Key& key) {
    if (4 * (size_ + 1) > 3 * slots_.size()) grow();
    Slot& slot = find(key);
    if (!slot.used) {
      slot = {key, 0, 1};
      ++size_;
    }
    return slot.value;
  }
  size_t size() const { return size_; }

 private:
  struct Slot {
    Key key;
    uint32_t value = 0, used = 0;
  };
  Slot& find(const Key& key) {
    size_t at = XXH3_64bits(&key, sizeof key) & (slots_.size() - 1);
    while (slots_[at].used && !(slots_[at].key == key)) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.used) find(slot.key) = slot;
  }
  std::vector<Slot> slots_ = std::vector<Slot>(1 << 12);
  size_t size_ = 0;
};

// Values by number; those with the same bytes have the same number.
template <class T>
class Pool {
 public:
  Id put(T&& value, std::string_view bytes) {
    uint32_t& id = ids_[fingerprint(bytes.data(), bytes.size())];
    if (id == 0) {
      values_.push_back(std::move(value));
      id = static_cast<Id>(values_.size());
    }
    return id;
  }
  const T& operator[](Id id) const { return values_[id - 1]; }
  size_t size() const { return values_.size(); }

 private:
  Memo ids_;
  std::deque<T> values_;
};

// Fingerprints of 96 bits, at most 3/4 full, twelve bytes each. Two of n states have the same one
// with a probability of about n^2 / 2^97: 10^-12 for 4 * 10^8 states.
class FingerprintSet {
 public:
  FingerprintSet() { allocate(20); }
  // Whether it is new.
  bool insert(const Key& key) {
    if (4 * (size_ + 1) > 3 * (mask_ + 1)) grow();
    const auto high = static_cast<uint32_t>(key.high);
    if (!put(key.low + (key.low == 0), high)) return false;
    ++size_;
    return true;
  }
  uint64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  template <class T>
  using Array = std::unique_ptr<T[], Free>;

  void allocate(int bits) {
    bits_ = bits;
    mask_ = (uint64_t{1} << bits) - 1;
    low_.reset(static_cast<uint64_t*>(std::calloc(mask_ + 1, sizeof(uint64_t))));
    high_.reset(static_cast<uint32_t*>(std::calloc(mask_ + 1, sizeof(uint32_t))));
    if (!low_ || !high_) throw std::bad_alloc();
  }
  bool put(uint64_t low, uint32_t high) {
    uint64_t at = (low ^ (uint64_t{high} << 16)) & mask_;
    for (; low_[at] != 0; at = (at + 1) & mask_)
      if (low_[at] == low && high_[at] == high) return false;
    low_[at] = low;
    high_[at] = high;
    return true;
  }
  void grow() {
    const uint64_t old_size = mask_ + 1;
    const Array<uint64_t> low = std::move(low_);
    const Array<uint32_t> high = std::move(high_);
    allocate(bits_ + 1);
    for (uint64_t i = 0; i < old_size; ++i)
      if (low[i]) put(low[i], high[i]);
  }

  int bits_ = 0;
  uint64_t mask_ = 0, size_ = 0;
  Array<uint64_t> low_;
  Array<uint32_t> high_;
};

}  // namespace maniple::model

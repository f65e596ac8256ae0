// Storage for an exploration: values that are equal get one number, transitions between them are
// computed once, visited states are kept as fingerprints. Equal means: of the same 128 bits.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cstdint>
#include <deque>
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
template <class... T>
Key memo_key(T... numbers) {
  const uint64_t words[] = {static_cast<uint64_t>(numbers)...};
  return fingerprint(words, sizeof words);
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

// Fingerprints of 95 bits, at most 3/4 full, twelve bytes each. Two of n states have the same one
// with a probability of about n^2 / 2^96: 10^-11 or less for 4 * 10^8 states.
class FingerprintSet {
 public:
  // Whether it is new.
  bool insert(const Key& key) {
    if (4 * (size_ + 1) > 3 * (mask_ + 1)) grow();
    if (!put(slot_of(key))) return false;
    ++size_;
    return true;
  }
  // It will be asked for soon.
  void expect(const Key& key) const { __builtin_prefetch(&slots_[home(slot_of(key))]); }
  uint64_t size() const { return size_; }

 private:
  using Slot = std::array<uint32_t, 3>;  // all zeros: free

  static Slot slot_of(const Key& key) {
    return {static_cast<uint32_t>(key.low), static_cast<uint32_t>(key.low >> 32),
            static_cast<uint32_t>(key.high | 1)};
  }
  uint64_t home(const Slot& slot) const { return (slot[0] ^ (uint64_t{slot[1]} << 24)) & mask_; }
  bool put(const Slot& slot) {
    uint64_t at = home(slot);
    for (; slots_[at][2] != 0; at = (at + 1) & mask_)
      if (slots_[at] == slot) return false;
    slots_[at] = slot;
    return true;
  }
  void grow() {
    mask_ = 2 * mask_ + 1;
    std::vector<Slot> old(mask_ + 1);
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot[2]) put(slot);
  }

  uint64_t mask_ = (1 << 20) - 1, size_ = 0;
  std::vector<Slot> slots_ = std::vector<Slot>(mask_ + 1);
};

}  // namespace maniple::model

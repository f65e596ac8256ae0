#include "elastic/placement.h"

#include <algorithm>
#include <functional>

#include "core/errors.h"
#include "core/random.h"

namespace maniple {
namespace {

struct Pair {
  uint64_t hash;
  int32_t block, member;
};

enum class Role : uint64_t { kOwner = 1, kShadow = 2 };

std::vector<Pair> ranked_pairs(int64_t num_blocks, std::span<const Member> members, Role role) {
  std::vector<Pair> pairs;
  pairs.reserve(static_cast<size_t>(num_blocks) * members.size());
  for (int32_t b = 0; b < num_blocks; ++b)
    for (size_t m = 0; m < members.size(); ++m)
      pairs.push_back(
          {key_of(static_cast<uint64_t>(role), b, members[m].slice), b, static_cast<int32_t>(m)});
  std::sort(pairs.begin(), pairs.end(), [&](const Pair& x, const Pair& y) {
    if (x.hash != y.hash) return x.hash > y.hash;
    if (x.block != y.block) return x.block < y.block;
    return members[static_cast<size_t>(x.member)].slice <
           members[static_cast<size_t>(y.member)].slice;
  });
  return pairs;
}

// Room for n blocks over m members: each takes n / m, and n % m of them one more.
class Room {
 public:
  Room(int64_t blocks, size_t members)
      : base_(blocks / static_cast<int64_t>(members)),
        extras_(blocks % static_cast<int64_t>(members)),
        taken_(members, 0) {}

  bool take(int32_t member) {
    int64_t& n = taken_[static_cast<size_t>(member)];
    if (n > base_ || (n == base_ && extras_ == 0)) return false;
    if (n == base_) --extras_;
    ++n;
    return true;
  }
  bool has(int32_t member) const {
    const int64_t n = taken_[static_cast<size_t>(member)];
    return n < base_ || (n == base_ && extras_ > 0);
  }

 private:
  int64_t base_, extras_;
  std::vector<int64_t> taken_;
};

class Shadows {
 public:
  Shadows(std::vector<BlockPlace>& places, std::span<const Member> members)
      : places_(places), members_(members) {}

  void assign() {
    const int64_t n = static_cast<int64_t>(places_.size());
    const std::vector<Pair> pairs = ranked_pairs(n, members_, Role::kShadow);
    Room room(n, members_.size());
    for (const bool apart : {true, false})
      for (const Pair& p : pairs)
        if (place(p).shadow < 0 &&
            (apart ? apart_hosts(p.block, p.member) : differs(p.block, p.member)) &&
            room.take(p.member))
          place(p).shadow = p.member;
    for (int32_t b = 0; b < n; ++b)
      if (at(b).shadow < 0) fill(b, room);
    for (int32_t b = 0; b < n; ++b)
      if (!apart_hosts(b, at(b).shadow)) separate(b);
  }

 private:
  BlockPlace& at(int32_t block) { return places_[static_cast<size_t>(block)]; }
  BlockPlace& place(const Pair& p) { return at(p.block); }
  bool differs(int32_t block, int32_t member) { return at(block).owner != member; }
  bool apart_hosts(int32_t block, int32_t member) {
    return members_[static_cast<size_t>(at(block).owner)].host !=
           members_[static_cast<size_t>(member)].host;
  }

  // Only the owner of `block` has room: it shadows another block, whose shadow takes this one.
  void fill(int32_t block, Room& room) {
    const int32_t owner = at(block).owner;
    MANIPLE_INVARIANT(room.has(owner), "block {} has no shadow and nobody has room", block);
    for (const bool apart : {true, false})
      for (int32_t other = 0; other < static_cast<int32_t>(places_.size()); ++other) {
        const int32_t shadow = at(other).shadow;
        if (shadow < 0 || !differs(other, owner) || !differs(block, shadow)) continue;
        if (apart && !(apart_hosts(other, owner) && apart_hosts(block, shadow))) continue;
        at(other).shadow = owner;
        at(block).shadow = shadow;
        room.take(owner);
        return;
      }
    MANIPLE_INVARIANT(false, "block {} of owner {} finds no shadow", block, owner);
  }

  // Exchanges shadows with a block so that one more of the two pairs is on two hosts.
  void separate(int32_t block) {
    const int32_t mine = at(block).shadow;
    for (int32_t other = 0; other < static_cast<int32_t>(places_.size()); ++other) {
      const int32_t theirs = at(other).shadow;
      if (!apart_hosts(block, theirs) || !differs(other, mine)) continue;
      if (apart_hosts(other, theirs) && !apart_hosts(other, mine)) continue;
      std::swap(at(block).shadow, at(other).shadow);
      return;
    }
  }

  std::vector<BlockPlace>& places_;
  std::span<const Member> members_;
};

}  // namespace

std::vector<BlockPlace> place(int64_t num_blocks, std::span<const Member> members) {
  MANIPLE_INVARIANT(num_blocks >= 0 && num_blocks <= INT32_MAX && !members.empty(),
                    "place {} blocks on {} members", num_blocks, members.size());
  std::vector<BlockPlace> places(static_cast<size_t>(num_blocks), BlockPlace{-1, -1});
  Room room(num_blocks, members.size());
  for (const Pair& p : ranked_pairs(num_blocks, members, Role::kOwner)) {
    BlockPlace& at = places[static_cast<size_t>(p.block)];
    if (at.owner < 0 && room.take(p.member)) at.owner = p.member;
  }
  if (members.size() > 1) Shadows(places, members).assign();
  return places;
}

}  // namespace maniple

// Which slices hold the optimizer state of which block (spec/elastic.md section 5). A pure function
// of the block count and the members, so that nobody has to record or send a plan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "elastic/types.h"

namespace maniple {

// Indices into the members; shadow is -1 with a single member.
struct BlockPlace {
  int32_t owner = 0;
  int32_t shadow = -1;
  bool operator==(const BlockPlace&) const = default;
};

// Place of each of `num_blocks` blocks among `members`, whose slices differ.
//  - Owners per member differ by at most one, and so do shadows.
//  - Owner and shadow differ, and are on different hosts wherever the balance of the counts lets
//    them be.
//  - Only slice numbers and hosts matter, neither the order of the members nor their lives: a
//    relaunched slice is placed like the one before. When one member leaves or joins, few of the
//    holders among the others change.
// Method: rendezvous hashing with balance. All pairs (block, member) are taken by falling hash; a
// block goes to the first member that has room. This is the one stable matching of blocks and
// members that both rank each other by that hash, which is why small changes stay small. What the
// greedy pass leaves over (a block whose only member with room is its owner, or on its owner's
// host) is exchanged with another block. O(blocks x members log).
std::vector<BlockPlace> place(int64_t num_blocks, std::span<const Member> members);

}  // namespace maniple

// Who holds which block before an epoch trains, and which copies give every block its holders
// again (spec/elastic.md section 5). Pure functions of an EPOCH, so every slice computes the same
// plan. Blocks are those of one position; all positions do the same.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "elastic/epoch.h"

namespace maniple {

struct BlockLayout {
  int64_t num_blocks = 0;
  Redundancy redundancy = Redundancy::kShadow;
};

// The members that hold each block in an epoch with these members, as indices: {owner, shadow},
// the owner alone without redundancy, the owner and all others when replicated.
std::vector<std::vector<int32_t>> holders(const BlockLayout& layout,
                                          const std::vector<Member>& members);

// The members of `decision` that hold each block already, by `holds` and `past`.
std::vector<std::vector<int32_t>> present_holders(const BlockLayout& layout,
                                                  const EpochDecision& decision);

// The first block that no member holds: the epoch then has to load a checkpoint.
std::optional<int64_t> lost_block(const BlockLayout& layout, const EpochDecision& decision);

struct BlockCopy {
  int64_t block = 0;
  int32_t from = 0, to = 0;  // indices in decision.members
  bool operator==(const BlockCopy&) const = default;
};

// The copies that the decision's own placement needs, by block; donors share the work. Empty when
// the decision loads a checkpoint. No block may be lost.
std::vector<BlockCopy> plan_copies(const BlockLayout& layout, const EpochDecision& decision);

}  // namespace maniple

#include "elastic/reshard.h"

#include <algorithm>
#include <map>

#include "core/errors.h"
#include "elastic/placement.h"

namespace maniple {

std::vector<std::vector<int32_t>> holders(const BlockLayout& layout,
                                          const std::vector<Member>& members) {
  std::vector<std::vector<int32_t>> result(static_cast<size_t>(layout.num_blocks));
  const std::vector<BlockPlace> places = place(layout.num_blocks, members);
  for (size_t b = 0; b < places.size(); ++b) {
    result[b].push_back(places[b].owner);
    for (int32_t m = 0; layout.redundancy == Redundancy::kReplicated &&
                        m < static_cast<int32_t>(members.size()); ++m)
      if (m != places[b].owner) result[b].push_back(m);
    if (layout.redundancy == Redundancy::kShadow && places[b].shadow >= 0)
      result[b].push_back(places[b].shadow);
  }
  return result;
}

std::vector<std::vector<int32_t>> present_holders(const BlockLayout& layout,
                                                  const EpochDecision& decision) {
  std::vector<std::vector<int32_t>> result(static_cast<size_t>(layout.num_blocks));
  for (const PastEpoch& past : decision.past) {
    // Index in past.members -> index in decision.members, where the member is the same life.
    std::vector<int32_t> now(past.members.size(), -1);
    for (size_t p = 0; p < past.members.size(); ++p) {
      const int m = decision.index_of(past.members[p].slice);
      if (m < 0 || decision.members[static_cast<size_t>(m)].life != past.members[p].life) continue;
      const auto& held = decision.holds[static_cast<size_t>(m)];
      if (std::find(held.begin(), held.end(), past.number) != held.end()) now[p] = m;
    }
    const auto of_past = holders(layout, past.members);
    for (size_t b = 0; b < of_past.size(); ++b)
      for (const int32_t p : of_past[b])
        if (now[static_cast<size_t>(p)] >= 0) result[b].push_back(now[static_cast<size_t>(p)]);
  }
  for (auto& of_block : result) {
    std::sort(of_block.begin(), of_block.end());
    of_block.erase(std::unique(of_block.begin(), of_block.end()), of_block.end());
  }
  return result;
}

std::optional<int64_t> lost_block(const BlockLayout& layout, const EpochDecision& decision) {
  const auto present = present_holders(layout, decision);
  for (size_t b = 0; b < present.size(); ++b)
    if (present[b].empty()) return static_cast<int64_t>(b);
  return std::nullopt;
}

std::vector<BlockCopy> plan_copies(const BlockLayout& layout, const EpochDecision& decision) {
  if (decision.loads_checkpoint()) return {};
  const auto present = present_holders(layout, decision),
             wanted = holders(layout, decision.members);
  std::vector<BlockCopy> copies;
  std::vector<int64_t> given(decision.members.size(), 0);
  for (size_t b = 0; b < wanted.size(); ++b) {
    const auto& donors = present[b];
    MANIPLE_INVARIANT(!donors.empty(), "epoch {}: block {} is lost", decision.number, b);
    for (const int32_t to : wanted[b]) {
      if (std::binary_search(donors.begin(), donors.end(), to)) continue;
      const int32_t from =
          *std::min_element(donors.begin(), donors.end(), [&](int32_t x, int32_t y) {
            return given[static_cast<size_t>(x)] < given[static_cast<size_t>(y)];
          });
      ++given[static_cast<size_t>(from)];
      copies.push_back({static_cast<int64_t>(b), from, to});
    }
  }
  return copies;
}

}  // namespace maniple

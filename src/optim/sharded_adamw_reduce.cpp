// Gradients of units to the sums of blocks: folding, and the reduction inside and between slices.
#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

#include "kernels/device_kernels.h"
#include "kernels/exact_sum.h"
#include "optim/sharded_adamw.h"
#include "optim/sharded_adamw_impl.h"
#include "parallel/tensor_hash.h"

namespace maniple {
namespace {

constexpr int64_t kFoldChunk = 1 << 14;  // gradients that stay in the cache until they are cleared

}  // namespace

void ShardedAdamw::begin_attempt() {
  addends_ = 0;
  for (Shard& s : shards_) {
    if (!s.clean) store_.group(s.group).grad.zero_();
    s.fresh = true;
    s.under_way.clear();
  }
}

void ShardedAdamw::begin_unit(bool check) {
  legal_ = true;
  check_ = check && copied_;
  for (Shard& s : shards_) {
    s.clean = false;
    s.unfolded = store_.group(s.group).grad.numel();
  }
}

uint64_t ShardedAdamw::gradient_hash() const {
  uint64_t hash = 0;
  for (const Shard& s : shards_)
    hash = mix64(hash + tensor_hash(store_.group(s.group).grad));
  return hash;
}

Communicator& ShardedAdamw::first_group(const Shard& s) const {
  Communicator& inner = store_.mesh().grad_group(s.group);
  return inner.size() > 1 ? inner : store_.mesh().across();
}

bool ShardedAdamw::can_begin_early() const {
  return std::any_of(shards_.begin(), shards_.end(), [&](const Shard& s) {
    return s.exact && s.pieces.size() == 1 && first_group(s).size() > 1 && first_group(s).overlaps();
  });
}

void ShardedAdamw::begin_reduce(const std::array<int64_t, kNumGradGroups>& complete) {
  for (Shard& s : shards_) {
    if (!s.exact || s.pieces.size() > 1 || first_group(s).size() == 1) continue;
    for (const auto& work : s.under_way) work->progress();
    const int64_t block = store_.block_elements();
    const int64_t from = (complete[static_cast<int>(s.group)] + block - 1) / block * block;
    const int64_t end = s.unfolded;
    if (from >= end) continue;
    fold_from(s, from);
    reduce_early(s, from, end);
  }
}

// The part of the sums in [begin, end), to those who hold it next.
void ShardedAdamw::reduce_early(Shard& s, int64_t begin, int64_t end) {
  Communicator& group = first_group(s);
  const bool in_slice = &group != &store_.mesh().across();
  const std::vector<int64_t>& parts = in_slice ? s.section_counts : s.owned_counts;
  std::vector<int64_t> counts;
  at::Tensor out;
  int64_t part_begin = 0;
  for (size_t r = 0; r < parts.size(); ++r) {
    const int64_t from = std::max(begin, part_begin);
    const int64_t n = std::max<int64_t>(0, std::min(end, part_begin + parts[r]) - from);
    counts.push_back(n);
    if (static_cast<int>(r) == group.rank())
      out = (in_slice ? s.section : s.owned).narrow(0, n ? from - part_begin : 0, n);
    part_begin += parts[r];
  }
  s.under_way.push_back(
      group.begin_reduce_scatter(s.sum.narrow(0, begin, end - begin), out, counts));
}

void ShardedAdamw::fold_from(Shard& s, int64_t begin) {
  for (const Piece& piece : s.pieces) {
    const int64_t skip = std::max<int64_t>(0, begin - piece.from);
    const int64_t n = std::min(piece.n, s.unfolded - piece.from) - skip;
    if (n > 0) fold(s, {piece.from + skip, piece.to + skip, n});
  }
  s.unfolded = begin;
}

void ShardedAdamw::fold(Shard& s, const Piece& piece) {
  const at::Tensor grad = store_.group(s.group).grad.narrow(0, piece.from, piece.n);
  at::Tensor sum = s.sum.narrow(0, piece.to, piece.n);
  const int64_t block = store_.block_elements();  // a piece begins where a block does
  if (grad.is_cuda()) {
    if (s.fresh) sum.zero_();
    at::Tensor illegal = at::zeros({1}, grad.options().dtype(at::kInt));
    device::exact_fold(grad, q_, s.bound_bits, sum, illegal);
    if (illegal.item<int32_t>()) legal_ = false;
    grad.zero_();
    const at::Tensor host = check_ ? sum.cpu() : at::Tensor();
    for (int64_t k = 0; check_ && k < piece.n; k += block)
      addends_ += linear_check(span_of<const int64_t>(host).subspan(k, block), piece.from + k);
    return;
  }
  with_type(grad, [&](auto zero) {
    using T = decltype(zero);
    const auto g = span_of<T>(grad);
    const auto sums = span_of<int64_t>(sum);
    at::parallel_for(0, piece.n, kFoldChunk, [&](int64_t a, int64_t b) {
      uint64_t check = 0;
      for (int64_t begin = a, end; begin < b; begin = end) {
        const int64_t first = begin % block;  // of its block
        end = std::min({b, begin + kFoldChunk, begin - first + block});
        const auto part = g.subspan(begin, end - begin);
        const auto to = sums.subspan(begin, part.size());
        const std::span<const T> addends = part;
        if (!(s.fresh ? exact_round(addends, q_, s.bound_bits, to)
                      : exact_fold(addends, q_, s.bound_bits, to)))
          legal_ = false;
        std::fill(part.begin(), part.end(), T{0});
        if (check_) check += linear_check(to, piece.from + begin - first, first);
      }
      addends_ += check;
    });
  });
}

bool ShardedAdamw::fold_unit() {
  for (Shard& s : shards_) {
    if (!s.exact) continue;
    const int64_t left = s.unfolded;
    fold_from(s, 0);
    if (left > 0 && !s.under_way.empty()) reduce_early(s, 0, left);
    s.fresh = false;
    s.clean = true;
  }
  return legal_;
}

// When one throws the others end too: what they move over may not outlive this call.
void ShardedAdamw::wait_for_sums(bool in_slice) {
  std::vector<std::unique_ptr<Work>> works;
  for (Shard& s : shards_)
    if (!in_slice || store_.mesh().grad_group(s.group).size() > 1)
      for (auto& work : std::exchange(s.under_way, {})) works.push_back(std::move(work));
  for (const auto& work : works) work->wait();
}

void ShardedAdamw::reduce_in_slice() {
  for (Shard& s : shards_) {
    Communicator& inner = store_.mesh().grad_group(s.group);
    if (s.exact && inner.size() > 1 && s.under_way.empty())
      s.under_way.push_back(inner.begin_reduce_scatter(s.sum, s.section, s.section_counts));
  }
  wait_for_sums(/*in_slice=*/true);
}

void ShardedAdamw::reduce_across() {
  Communicator& across = store_.mesh().across();
  if (across.size() == 1) return;
  for (Shard& s : shards_)
    if (s.exact && s.under_way.empty())
      s.under_way.push_back(across.begin_reduce_scatter(s.section, s.owned, s.owned_counts));
  wait_for_sums(/*in_slice=*/false);
  if (!copied_) return;
  for (Shard& s : shards_) {
    if (!s.exact) continue;
    if (replicated_)
      across.all_gather_v(s.owned, s.taken, s.owned_counts);
    else
      across.all_to_all_v(s.owned, s.give, s.taken, s.take);
  }
}

}  // namespace maniple

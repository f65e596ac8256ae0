// Hashes of state, sums and parameters, by which corruption is found; flips for its tests.
#include <bit>

#include "kernels/exact_sum.h"
#include "kernels/flip_bit.h"
#include "kernels/parallel_tasks.h"
#include "optim/sharded_adamw.h"
#include "optim/sharded_adamw_impl.h"
#include "parallel/tensor_hash.h"

namespace maniple {

uint64_t linear_check(std::span<const int64_t> sums, int64_t block_begin, int64_t first) {
  const ExactChecksum c =
      exact_checksum(sums, exact_mix32(static_cast<uint32_t>(block_begin)), static_cast<uint32_t>(first));
  return c.c2 + 0x9e3779b97f4a7c15u * c.c1;
}

std::array<uint64_t, 3> ShardedAdamw::hash_piece(const Block& block, int64_t piece) const {
  const int64_t from = piece * kChunk, n = std::min(kChunk, block.master.numel() - from);
  const auto hash = [&](const at::Tensor& t) { return tensor_hash(t.narrow(0, from, n)); };
  return {hash(block.master), hash(block.m), hash(block.v)};
}

std::vector<std::array<uint64_t, 3>> ShardedAdamw::hashes_of(const Block& block) const {
  std::vector<std::array<uint64_t, 3>> hashes((block.master.numel() + kChunk - 1) / kChunk);
  for (size_t p = 0; p < hashes.size(); ++p) hashes[p] = hash_piece(block, static_cast<int64_t>(p));
  return hashes;
}

void ShardedAdamw::seal() {
  broken_.clear();
  std::vector<std::pair<Block*, int64_t>> pieces;
  for (Shard& s : shards_)
    for (auto& [number, b] : s.blocks) {
      if (!b.held) continue;
      b.seals.resize((b.master.numel() + kChunk - 1) / kChunk);
      for (size_t p = 0; p < b.seals.size(); ++p) pieces.push_back({&b, static_cast<int64_t>(p)});
    }
  parallel_tasks(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const at::NoGradGuard no_grad;
    const auto [block, piece] = pieces[i];
    block->seals[piece] = hash_piece(*block, piece);
  });
}

uint64_t ShardedAdamw::parameter_hash() const {
  std::vector<at::Tensor> parts;
  for (const Shard& s : shards_) {
    const at::Tensor& value = store_.group(s.group).value;
    for (int64_t from = 0; from < value.numel(); from += kChunk)
      parts.push_back(value.narrow(0, from, std::min(kChunk, value.numel() - from)));
  }
  std::vector<uint64_t> hashes(parts.size());
  parallel_tasks(static_cast<int64_t>(parts.size()), [&](int64_t i) {
    const at::NoGradGuard no_grad;
    hashes[i] = tensor_hash(parts[i]);
  });
  uint64_t hash = 0;
  for (const uint64_t part : hashes) hash = mix64(hash + part);
  return hash;
}

std::vector<int64_t> ShardedAdamw::state_hashes() const {
  std::vector<int64_t> hashes(1 + num_blocks_);
  hashes[0] = static_cast<int64_t>(parameter_hash());
  for (const Shard& s : shards_)
    for (const auto& [number, b] : s.blocks) {
      if (!b.held) continue;
      uint64_t hash = 0;
      for (const auto& piece : b.seals)
        for (const uint64_t seal : piece) hash = mix64(hash + seal);
      hashes[1 + number] = static_cast<int64_t>(hash);
    }
  return hashes;
}

uint64_t ShardedAdamw::state_check(const std::vector<int64_t>& hashes) const {
  const auto slices = static_cast<uint64_t>(store_.mesh().num_slices());
  const uint64_t first = store_.mesh().slice() == 0 ? slices - 1 : 0 - uint64_t{1};
  uint64_t check = first * static_cast<uint64_t>(hashes[0]);
  if (!copied_) return check;
  for (const Shard& s : shards_)
    for (const auto& [number, b] : s.blocks)
      if (b.held) check += weight(b) * static_cast<uint64_t>(hashes[1 + number]);
  return check;
}

uint64_t ShardedAdamw::weight(const Block& b) const {
  if (!b.owned) return 0 - uint64_t{1};
  return replicated_ ? static_cast<uint64_t>(store_.mesh().num_slices()) - 1 : 1;
}

void ShardedAdamw::flip(const std::string& what, int64_t element, int bit) {
  for (Shard& s : shards_) {
    std::vector<at::Tensor> places;
    if (what == "parameter") places.push_back(store_.group(s.group).value);
    if (what == "gradient") places.push_back(store_.group(s.group).grad);
    if (what == "sum" && s.exact) places.push_back(s.section);
    for (auto& [number, b] : s.blocks) {
      if (!b.held) continue;
      if (what == "reduced" && s.exact) places.push_back(b.reduced);
      if (what == "master") places.push_back(b.master);
      if (what == "m") places.push_back(b.m);
      if (what == "v") places.push_back(b.v);
    }
    for (const at::Tensor& t : places) {
      if (element >= t.numel()) {
        element -= t.numel();
        continue;
      }
      flip_bit(t, element, bit);
      return;
    }
  }
}

Fingerprint ShardedAdamw::fingerprint() const {
  Fingerprint f;
  for (const Shard& s : shards_) {
    if (!s.counted) continue;
    for (const auto& [number, block] : s.blocks) {
      if (!block.owned) continue;
      const at::Tensor master = block.master.cpu();
      for (const Run& run : block.runs) {
        const uint64_t key = hash_name(run.parameter->name);
        for (int64_t i = 0; i < run.n; ++i) {
          const int64_t index = run.parameter->global_index(run.first + i);
          if (index < 0) continue;
          if (master.scalar_type() == at::kDouble) {
            const auto bits =
                std::bit_cast<uint64_t>(master.const_data_ptr<double>()[run.at + i]);
            f.add_word(static_cast<uint32_t>(bits), 2 * index, key);
            f.add_word(static_cast<uint32_t>(bits >> 32), 2 * index + 1, key);
          } else {
            f.add_word(std::bit_cast<uint32_t>(master.const_data_ptr<float>()[run.at + i]), index,
                       key);
          }
        }
      }
    }
  }
  return f;
}

Fingerprint ShardedAdamw::sums_fingerprint() const {
  Fingerprint f;
  for (const Shard& s : shards_) {
    const at::Tensor sums = (s.exact ? s.section : store_.group(s.group).grad).cpu();
    const auto* words = static_cast<const uint32_t*>(sums.const_data_ptr());
    for (size_t i = 0; i < sums.nbytes() / 4; ++i)
      f.add_word(words[i], i, static_cast<uint64_t>(s.group));
  }
  return f;
}

}  // namespace maniple

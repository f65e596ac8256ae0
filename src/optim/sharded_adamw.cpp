#include "optim/sharded_adamw.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>

#include "core/errors.h"
#include "kernels/parallel_tasks.h"
#include "kernels/device_kernels.h"
#include "optim/sharded_adamw_impl.h"
#include "parallel/tensor_hash.h"

namespace maniple {
namespace {

double sum_of_squares(const at::Tensor& block) {
  return with_type(block, [&](auto zero) {
    using T = decltype(zero);
    return block_sum_of_squares(std::span<const T>(span_of<T>(block)));
  });
}

}  // namespace

int64_t block_elements(const OptimConfig& optim, int64_t total_parameters) {
  if (optim.block_elements > 0) return optim.block_elements;
  const auto share = std::bit_floor(static_cast<uint64_t>(total_parameters) / 64);
  return static_cast<int64_t>(std::clamp<uint64_t>(share, 1 << 12, 1 << 20));
}

ShardedAdamw::ShardedAdamw(ParameterStore& store, const OptimConfig& optim, int64_t num_units,
                           int64_t total_parameters)
    : store_(store),
      optim_(optim),
      q_(exact_q(total_parameters, store.precision() == Precision::kFp64)) {
  ProcessMesh& mesh = store.mesh();
  const int64_t block = store.block_elements();
  BlockHolders holders;
  for (int i = 0; i < kNumGradGroups; ++i) {
    const auto group = static_cast<GradGroup>(i);
    const auto& g = store.group(group);
    Shard s;
    s.group = group;
    if (!g.used) continue;
    const Communicator& inner = mesh.grad_group(group);
    const int64_t addends = num_units * inner.size();
    s.exact = addends > 1;
    s.counted = group != GradGroup::kReplicated || mesh.tp_index() == 0;
    s.bound_bits = exact_bound_bits(addends);
    const int64_t blocks = g.grad.numel() / block, ranks = inner.size();
    for (int64_t r = 0; r < ranks; ++r)
      s.section_counts.push_back(((r + 1) * blocks / ranks - r * blocks / ranks) * block);
    s.begin = inner.rank() * blocks / ranks * block;
    s.blocks_here = s.section_counts[inner.rank()] / block;
    s.first_number = num_blocks_;
    const int64_t most = (blocks + ranks - 1) / ranks, slices = mesh.num_slices();
    for (int64_t b = 0; b < most; ++b)
      holders.push_back({static_cast<int32_t>(b * slices / most)});
    num_blocks_ += most;
    if (s.exact) {
      s.sum = at::zeros({g.grad.numel()}, g.grad.options().dtype(at::kLong));
      s.section = ranks > 1 ? at::zeros({s.blocks_here * block}, s.sum.options()) : s.sum;
    }
    shards_.push_back(std::move(s));
  }
  set_holders(holders);
}

int64_t ShardedAdamw::num_blocks(const ParameterStore& store, int64_t block_elements) {
  int64_t blocks = 0;
  ProcessMesh& mesh = store.mesh();
  for (int i = 0; i < kNumGradGroups; ++i) {
    const auto group = static_cast<GradGroup>(i);
    const int64_t whole = (store.group(group).used + block_elements - 1) / block_elements;
    const int64_t ranks = mesh.grad_group(group).size();
    blocks += (whole + ranks - 1) / ranks;
  }
  return blocks;
}

std::vector<ShardedAdamw::Run> ShardedAdamw::runs(const Shard& s, int64_t begin) const {
  std::vector<Run> out;
  for (Parameter* p : store_.group(s.group).members) {
    const int64_t from = std::max(p->flat_begin, begin);
    const int64_t to = std::min(p->flat_begin + p->numel(), begin + store_.block_elements());
    if (from < to) out.push_back({p, from - p->flat_begin, to - from, from - begin});
  }
  return out;
}

// Where the sums lie, and how much of them goes where. Every rank of the slice's group computes the
// same order for all sections.
void ShardedAdamw::lay_out(Shard& s, const BlockHolders& holders) {
  const int64_t block = store_.block_elements(), slices = store_.mesh().num_slices();
  const int64_t self = store_.mesh().slice();
  s.pieces.clear();
  s.owned_counts.assign(slices, 0);
  s.give.assign(slices, 0);
  s.take.assign(slices, 0);
  s.in_order = true;
  const int here = store_.mesh().grad_group(s.group).rank();
  int64_t section_begin = 0;
  for (int r = 0; r < static_cast<int>(s.section_counts.size()); ++r) {
    const int64_t count = s.section_counts[r], blocks = count / block;
    std::vector<int64_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    const auto key = [&](int64_t b) {
      const auto& of = holders[s.first_number + b];
      return std::pair(of[0], of.size() > 1 ? of[1] : -1);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return key(a) < key(b); });
    std::vector<int64_t> slots(blocks);
    for (int64_t slot = 0; slot < blocks; ++slot) slots[order[slot]] = slot;
    for (int64_t b = 0; b < blocks; ++b) {
      const Piece piece{section_begin + b * block, section_begin + slots[b] * block, block};
      Piece* last = s.pieces.empty() ? nullptr : &s.pieces.back();
      if (last && last->to + last->n == piece.to)
        last->n += block;
      else
        s.pieces.push_back(piece);
    }
    if (r == here) {
      s.slots = slots;
      for (int64_t b = 0; b < blocks; ++b) {
        s.in_order &= slots[b] == b;
        const auto& of = holders[s.first_number + b];
        s.owned_counts[of[0]] += block;
        if (of.size() < 2) continue;
        if (of[0] == self) s.give[of[1]] += block;
        if (of[1] == self) s.take[of[0]] += block;
      }
    }
    section_begin += count;
  }
}

// Gives the held blocks their sums: parts of `owned` and of `taken`.
void ShardedAdamw::set_reduced(Shard& s, const BlockHolders& holders) {
  const int64_t block = store_.block_elements();
  const auto self = static_cast<int32_t>(store_.mesh().slice());
  const bool alone = store_.mesh().num_slices() == 1;
  int64_t taken = 0;
  for (const int64_t n : s.take) taken += n;
  s.owned = alone ? s.section : at::zeros({s.owned_counts[self]}, s.sum.options());
  s.taken = at::zeros({replicated_ ? s.section.numel() : taken}, s.sum.options());
  int64_t first_owned = 0;  // slot
  for (int32_t slice = 0; slice < self; ++slice) first_owned += s.owned_counts[slice] / block;
  // Second holders take in the order of the slots, which is by owner.
  std::map<int64_t, int64_t> taken_slots;  // slot -> block of the section
  for (int64_t b = 0; b < s.blocks_here; ++b) {
    const auto& of = holders[s.first_number + b];
    if (of[0] == self) {
      s.blocks.at(s.first_number + b).reduced =
          s.owned.narrow(0, (s.slots[b] - first_owned) * block, block);
    } else if (replicated_) {
      s.blocks.at(s.first_number + b).reduced = s.taken.narrow(0, s.slots[b] * block, block);
    } else if (of.size() > 1 && of[1] == self) {
      taken_slots[s.slots[b]] = b;
    }
  }
  int64_t at_block = 0;
  for (const auto& [slot, b] : taken_slots)
    s.blocks.at(s.first_number + b).reduced = s.taken.narrow(0, at_block++ * block, block);
}

void ShardedAdamw::set_holders(const BlockHolders& holders) {
  MANIPLE_INVARIANT(static_cast<int64_t>(holders.size()) == num_blocks_, "{} blocks, holders of {}",
                    num_blocks_, holders.size());
  const int64_t block = store_.block_elements();
  const auto self = static_cast<int32_t>(store_.mesh().slice());
  const size_t slices = store_.mesh().num_slices();
  copied_ = slices > 1 && holders[0].size() > 1;
  replicated_ = slices > 2 && holders[0].size() == slices;
  for (Shard& s : shards_) {
    lay_out(s, holders);
    for (auto& [number, held] : s.blocks) held.held = held.owned = false;
    for (int64_t b = 0; b < s.blocks_here; ++b) {
      const auto& of = holders[s.first_number + b];
      if (std::find(of.begin(), of.end(), self) == of.end()) continue;
      const auto [at_block, fresh] = s.blocks.try_emplace(s.first_number + b);
      Block& held = at_block->second;
      if (fresh) {
        held.begin = s.begin + b * block;
        held.runs = runs(s, held.begin);
        for (at::Tensor* t : {&held.master, &held.m, &held.v})
          *t = at::zeros({block}, store_.group(s.group).grad.options());
      }
      held.held = true;
      held.owned = of[0] == self;
    }
    if (s.exact) set_reduced(s, holders);
    s.gathered = s.in_order ? at::Tensor()
                            : at::empty({s.blocks_here * block}, store_.group(s.group).value.options());
  }
}

void ShardedAdamw::drop_unheld() {
  for (Shard& s : shards_) std::erase_if(s.blocks, [](const auto& b) { return !b.second.held; });
}

void ShardedAdamw::forget() {
  for (Shard& s : shards_) s.blocks.clear();
}

const ShardedAdamw::Block* ShardedAdamw::find_block(int64_t number) const {
  for (const Shard& s : shards_)
    if (const auto found = s.blocks.find(number); found != s.blocks.end()) return &found->second;
  return nullptr;  // empty at this position
}

int64_t ShardedAdamw::packed_bytes(const std::vector<int64_t>& blocks) const {
  int64_t bytes = 0;
  for (const int64_t number : blocks)
    for (const Shard& s : shards_)
      if (number >= s.first_number && number < s.first_number + s.blocks_here)
        bytes += 3 * store_.block_elements() *
                 static_cast<int64_t>(store_.group(s.group).grad.element_size());
  return bytes;
}

at::Tensor ShardedAdamw::pack(const std::vector<int64_t>& blocks) const {
  const at::TensorOptions bytes = at::TensorOptions(at::kByte).device(store_.mesh().device());
  std::vector<at::Tensor> parts = {at::empty({0}, bytes)};
  for (const int64_t number : blocks)
    if (const Block* b = find_block(number))
      for (const at::Tensor* t : {&b->master, &b->m, &b->v}) parts.push_back(t->view(at::kByte));
  return at::cat(parts);
}

// The working copies follow by refresh_values(): what this rank has of them may be a step behind.
void ShardedAdamw::unpack(const std::vector<int64_t>& blocks, const at::Tensor& bytes) {
  int64_t from = 0;
  for (const int64_t number : blocks)
    if (const Block* b = find_block(number))
      for (const at::Tensor* t : {&b->master, &b->m, &b->v}) {
        const auto n = static_cast<int64_t>(t->nbytes());
        t->view(at::kByte).copy_(bytes.narrow(0, from, n));
        from += n;
      }
  MANIPLE_INVARIANT(from == bytes.numel(), "{} bytes for blocks of {}", bytes.numel(), from);
}

void ShardedAdamw::initialize(const Fill& fill) {
  for (Shard& s : shards_)
    for (auto& [number, b] : s.blocks) {
      b.m.zero_();
      b.v.zero_();
      for (const Run& run : b.runs) {
        std::vector<double> values(run.n);
        fill(*run.parameter, run.first, run.n, values.data());
        for (int64_t i = 0; i < run.n; ++i)
          if (run.parameter->global_index(run.first + i) < 0) values[i] = 0;
        b.master.narrow(0, run.at, run.n)
            .copy_(at::from_blob(values.data(), {run.n}, at::TensorOptions(at::kDouble)));
      }
    }
  refresh_values();
}

void ShardedAdamw::refresh_values() {
  for (Shard& s : shards_)
    for (auto& [number, b] : s.blocks)
      store_.group(s.group).value.narrow(0, b.begin, b.master.numel()).copy_(b.master);
}

at::Tensor ShardedAdamw::decode(const Shard& s, const Block& block, int64_t at_element, int64_t n,
                                double factor) const {
  const at::Tensor& mask = store_.group(s.group).grad_mask;
  const at::Tensor g = decode_unmasked(s, block, at_element, n, factor);
  return mask.defined() ? g * mask.narrow(0, block.begin + at_element, n) : g;
}

at::Tensor ShardedAdamw::decode_unmasked(const Shard& s, const Block& block, int64_t at_element,
                                         int64_t n, double factor) const {
  const at::Tensor& grad = store_.group(s.group).grad;
  if (!s.exact) {
    const at::Tensor g = grad.narrow(0, block.begin + at_element, n);
    return factor == 1 ? g : (g.to(at::kDouble) * factor).to(grad.scalar_type());
  }
  at::Tensor out = at::empty({n}, grad.options());
  if (out.is_cuda()) {
    device::exact_decode(block.reduced.narrow(0, at_element, n), q_, factor, out);
    return out;
  }
  const auto x = span_of<int64_t>(block.reduced).subspan(at_element, n);
  with_type(out, [&](auto zero) {
    exact_decode(std::span<const int64_t>(x), q_, factor, span_of<decltype(zero)>(out));
  });
  return out;
}

ShardedAdamw::Measured ShardedAdamw::measure(bool check) const {
  std::vector<std::pair<const Shard*, const Block*>> held;
  for (const Shard& s : shards_)
    for (const auto& [number, b] : s.blocks)
      if (b.held) held.emplace_back(&s, &b);
  std::vector<Measured> parts(held.size());
  const auto part = [&](int64_t i) {
    const at::NoGradGuard no_grad;
    parts[i] = measure(*held[i].first, *held[i].second, check && copied_);
  };
  if (store_.mesh().device().is_cuda())
    for (size_t i = 0; i < held.size(); ++i) part(static_cast<int64_t>(i));
  else
    parallel_tasks(static_cast<int64_t>(held.size()), part);
  Measured all;
  for (const Measured& m : parts) {
    all.norms.total += m.norms.total;
    all.norms.experts += m.norms.experts;
    all.norms.routers += m.norms.routers;
    all.finite &= m.finite;
    all.check.sums += m.check.sums;
    all.check.copies += m.check.copies;
  }
  return all;
}

// The checksum comes first and leaves the block in the cache.
ShardedAdamw::Measured ShardedAdamw::measure(const Shard& s, const Block& b, bool check) const {
  Measured m;
  if (check && s.exact) {
    const at::Tensor sums = b.reduced.cpu();
    const uint64_t c = linear_check(span_of<const int64_t>(sums), b.begin);
    if (b.owned) m.check.sums = 0 - c;
    m.check.copies = weight(b) * c;
  }
  if (!b.owned || !s.counted) return m;
  const at::Tensor g = decode(s, b, 0, b.master.numel(), 1);
  const double sum =
      g.is_cuda() ? device::block_sums_of_squares(g, g.numel()).item<double>() : sum_of_squares(g);
  m.finite = sum < 0x1p40;
  if (!m.finite) return m;
  m.norms.total = to_fixed(sum);
  if (s.group == GradGroup::kExpert) m.norms.experts = m.norms.total;
  // Routers share blocks with other parameters: their part of the block once more.
  for (const Run& run : b.runs)
    if (run.parameter->router)
      m.norms.routers += to_fixed(sum_of_squares(g.narrow(0, run.at, run.n).cpu()));
  return m;
}

void ShardedAdamw::update(double lr, double factor, double clip, int64_t applied_steps) {
  const double t = static_cast<double>(applied_steps);
  const AdamwStep step{lr, optim_.betas[0], optim_.betas[1], optim_.eps, 0,
                       1 - std::pow(optim_.betas[0], t), 1 - std::pow(optim_.betas[1], t), clip};
  broken_.clear();
  std::mutex mutex;  // of broken_
  const auto note_broken = [&](int64_t number, const Shard& s) {
    const std::lock_guard lock(mutex);
    broken_.push_back(fmt::format("master, m or v of block {} ({})", number, to_string(s.group)));
  };
  for (Shard& s : shards_) {
    const bool on_device = store_.group(s.group).value.is_cuda();
    for (auto& [number, block] : s.blocks) {
      if (!block.held) continue;
      if (on_device) {
        const bool sealed = !block.seals.empty();
        if (sealed && hashes_of(block) != block.seals) note_broken(number, s);
        update_on_device(s, block, step, factor);
        if (sealed) block.seals = hashes_of(block);
        continue;
      }
      const int64_t pieces = (block.master.numel() + kChunk - 1) / kChunk;
      at::parallel_for(0, pieces, 1, [&, &block = block, number = number](int64_t from, int64_t to) {
        const at::NoGradGuard no_grad;
        for (int64_t piece = from; piece < to; ++piece) {
          const bool sealed = !block.seals.empty();
          const bool broken = sealed && hash_piece(block, piece) != block.seals[piece];
          update_piece(s, block, piece, step, factor);
          if (sealed) block.seals[piece] = hash_piece(block, piece);
          if (broken) note_broken(number, s);
        }
      });
    }
  }
}

void ShardedAdamw::update_on_device(const Shard& s, Block& block, AdamwStep step, double factor) {
  for (const Run& run : block.runs) {
    step.weight_decay = run.parameter->decay ? optim_.weight_decay : 0;
    auto part = [&](const at::Tensor& t) { return t.narrow(0, run.at, run.n); };
    device::adamw(step, decode(s, block, run.at, run.n, factor), part(block.master), part(block.m),
                  part(block.v), store_.group(s.group).value.narrow(0, block.begin + run.at, run.n));
  }
}

// The elements of a block that lie in one piece of it.
void ShardedAdamw::update_piece(const Shard& s, Block& block, int64_t piece, AdamwStep step,
                                double factor) {
  const at::Tensor& value = store_.group(s.group).value;
  const auto width = static_cast<int64_t>(value.element_size());
  for (const Run& run : block.runs) {
    const int64_t k = std::max(run.at, piece * kChunk);
    const int64_t n = std::min(run.at + run.n, (piece + 1) * kChunk) - k;
    if (n <= 0) continue;
    step.weight_decay = run.parameter->decay ? optim_.weight_decay : 0;
    const at::Tensor g = decode(s, block, k, n, factor);
    with_type(block.master, [&](auto zero) {
      using T = decltype(zero);
      adamw<T>(step, n, span_of<T>(g).data(), &span_of<T>(block.master)[k], &span_of<T>(block.m)[k],
               &span_of<T>(block.v)[k], static_cast<char*>(value.data_ptr()) + (block.begin + k) * width,
               value.scalar_type() == at::kBFloat16);
    });
  }
}

void ShardedAdamw::publish_across() {
  if (quantizer_) refresh_values();  // what is on the grid already is not put there again
  Communicator& across = store_.mesh().across();
  if (across.size() == 1) return;
  const int64_t block = store_.block_elements();
  for (Shard& s : shards_) {
    at::Tensor section = store_.group(s.group).value.narrow(0, s.begin, s.blocks_here * block);
    std::map<int64_t, at::Tensor> parts = {{-1, at::empty({0}, section.options())}};  // by slot
    for (const auto& [number, b] : s.blocks)
      if (b.owned)
        parts[s.slots[number - s.first_number]] = section.narrow(0, b.begin - s.begin, block);
    std::vector<at::Tensor> mine;
    for (const auto& [slot, part] : parts) mine.push_back(part);
    at::Tensor& gathered = s.in_order ? section : s.gathered;
    across.all_gather_v(at::cat(mine), gathered, s.owned_counts);
    for (int64_t b = 0; !s.in_order && b < s.blocks_here; ++b)
      section.narrow(0, b * block, block).copy_(gathered.narrow(0, s.slots[b] * block, block));
  }
}

void ShardedAdamw::publish_in_slice() {
  for (Shard& s : shards_) {
    Communicator& inner = store_.mesh().grad_group(s.group);
    if (inner.size() == 1) continue;
    at::Tensor& value = store_.group(s.group).value;
    const int64_t n = s.blocks_here * store_.block_elements();
    inner.all_gather_v(value.narrow(0, s.begin, n), value, s.section_counts);
  }
  if (quantizer_) quantizer_->apply(store_);
}

std::vector<TensorSlice> ShardedAdamw::state_slices(Blocks blocks, bool with_moments) {
  std::vector<TensorSlice> slices;
  for (Shard& s : shards_)
    for (auto& [number, b] : s.blocks) {
      if (!b.held || (blocks == Blocks::kOwned && !b.owned)) continue;
      const auto type =
          b.master.scalar_type() == at::kDouble ? ElementType::kF64 : ElementType::kF32;
      std::vector<std::pair<std::string, at::Tensor*>> kinds = {{"master/", &b.master}};
      if (with_moments) kinds.insert(kinds.end(), {{"m/", &b.m}, {"v/", &b.v}});
      for (const Run& run : b.runs)
        for (auto& [prefix, tensor] : kinds)
          slices.push_back({prefix + run.parameter->name, type, run.parameter->global_shape,
                            run.parameter->offset, run.parameter->shape, run.first,
                            run.first + run.n,
                            static_cast<char*>(tensor->data_ptr()) +
                                run.at * static_cast<int64_t>(tensor->element_size())});
    }
  return slices;
}

int64_t ShardedAdamw::state_bytes() const {
  int64_t bytes = 0;
  for (const Shard& s : shards_)
    for (const auto& [number, b] : s.blocks) bytes += 3 * static_cast<int64_t>(b.master.nbytes());
  return bytes;
}

int64_t ShardedAdamw::exchange_bytes() const {
  int64_t elements = 0;
  for (const Shard& s : shards_) {
    if (!s.exact) continue;
    elements += s.sum.numel() - s.blocks_here * store_.block_elements();
    if (s.owned_counts.size() > 1)
      elements += s.section.numel() - s.owned_counts[store_.mesh().slice()];
    for (const int64_t n : s.give) elements += n;
  }
  return elements * 8;
}

}  // namespace maniple

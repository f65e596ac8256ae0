#include "optim/sharded_adamw.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/errors.h"
#include "kernels/parallel_tasks.h"
#include "kernels/device_kernels.h"

namespace maniple {
namespace {

template <typename T>
std::span<T> span_of(const at::Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), static_cast<size_t>(t.numel())};
}

// Runs body(typed zero) for the accumulation type of a tensor.
template <typename Body>
auto with_type(const at::Tensor& t, const Body& body) {
  return t.scalar_type() == at::kDouble ? body(double{}) : body(float{});
}

constexpr int64_t kChunk = 1 << 16;      // elements per thread task
constexpr int64_t kFillChunk = 1 << 20;  // elements filled at a time

double sum_of_squares(const at::Tensor& block) {
  return with_type(block, [&](auto zero) {
    using T = decltype(zero);
    return block_sum_of_squares(std::span<const T>(span_of<T>(block)));
  });
}

}  // namespace

ShardedAdamw::ShardedAdamw(ParameterStore& store, const OptimConfig& optim, int64_t num_units,
                           int64_t total_parameters)
    : store_(store),
      optim_(optim),
      q_(exact_q(total_parameters, store.precision() == Precision::kFp64)) {
  ProcessMesh& mesh = store.mesh();
  const int64_t block = store.block_elements();
  for (int i = 0; i < kNumGradGroups; ++i) {
    const auto group = static_cast<GradGroup>(i);
    const auto& g = store.group(group);
    Shard s;
    s.group = group;
    if (!g.used) continue;
    const Communicator& comm = mesh.grad_group(group);
    const int64_t addends = num_units * comm.size() / mesh.shape().slices;
    s.exact = addends > 1;
    s.counted = group != GradGroup::kReplicated || mesh.tp_index() == 0;
    s.bound_bits = exact_bound_bits(addends);
    const int64_t blocks = g.grad.numel() / block, ranks = comm.size();
    for (int64_t r = 0; r < ranks; ++r)
      s.counts.push_back(((r + 1) * blocks / ranks - r * blocks / ranks) * block);
    s.begin = comm.rank() * blocks / ranks * block;
    s.size = s.counts[comm.rank()];
    if (s.exact) {
      s.sum = at::zeros({g.grad.numel()}, g.grad.options().dtype(at::kLong));
      s.reduced = ranks > 1 ? at::zeros({s.size}, s.sum.options()) : s.sum;
    }
    for (at::Tensor* t : {&s.master, &s.m, &s.v}) *t = at::zeros({s.size}, g.grad.options());
    shards_.push_back(std::move(s));
  }
}

std::vector<ShardedAdamw::Run> ShardedAdamw::runs(const Shard& s) const {
  std::vector<Run> out;
  for (Parameter* p : store_.group(s.group).members) {
    const int64_t from = std::max(p->flat_begin, s.begin);
    const int64_t to = std::min(p->flat_begin + p->numel(), s.begin + s.size);
    if (from < to) out.push_back({p, from - p->flat_begin, to - from, from - s.begin});
  }
  return out;
}

void ShardedAdamw::initialize(const Fill& fill) {
  for (Shard& s : shards_) {
    s.m.zero_();
    s.v.zero_();
    for (const Run& run : runs(s)) {
      std::vector<double> values(std::min(run.n, kFillChunk));
      for (int64_t begin = 0; begin < run.n; begin += kFillChunk) {
        const int64_t n = std::min(run.n - begin, kFillChunk), first = run.first + begin;
        fill(*run.parameter, first, n, values.data());
        for (int64_t i = 0; i < n; ++i)
          if (run.parameter->global_index(first + i) < 0) values[i] = 0;
        s.master.narrow(0, run.at + begin, n)
            .copy_(at::from_blob(values.data(), {n}, at::TensorOptions(at::kDouble)));
      }
    }
  }
  refresh_values();
}

void ShardedAdamw::refresh_values() {
  for (Shard& s : shards_) store_.group(s.group).value.narrow(0, s.begin, s.size).copy_(s.master);
}

void ShardedAdamw::begin_attempt() {
  store_.zero_grad();
  for (Shard& s : shards_)
    if (s.exact) s.sum.zero_();
}

bool ShardedAdamw::fold_unit() {
  const at::Device& device = store_.mesh().device();
  std::atomic<bool> legal{true};
  at::Tensor illegal;
  if (device.is_cuda()) illegal = at::zeros({1}, at::TensorOptions(device).dtype(at::kInt));
  for (Shard& s : shards_) {
    if (!s.exact) continue;
    at::Tensor& grad = store_.group(s.group).grad;
    if (device.is_cuda()) {
      device::exact_fold(grad, q_, s.bound_bits, s.sum, illegal);
    } else {
      with_type(grad, [&](auto zero) {
        using T = decltype(zero);
        const auto g = span_of<T>(grad);
        const auto sum = span_of<int64_t>(s.sum);
        at::parallel_for(0, grad.numel(), kChunk, [&](int64_t a, int64_t b) {
          if (!exact_fold(std::span<const T>(g.subspan(a, b - a)), q_, s.bound_bits,
                          sum.subspan(a, b - a)))
            legal = false;
        });
      });
    }
    grad.zero_();
  }
  return illegal.defined() ? illegal.item<int32_t>() == 0 : legal.load();
}

void ShardedAdamw::exchange() {
  std::vector<std::unique_ptr<Work>> pending;
  for (Shard& s : shards_) {
    Communicator& comm = store_.mesh().grad_group(s.group);
    if (s.exact && comm.size() > 1)
      pending.push_back(comm.begin_reduce_scatter(s.sum, s.reduced, s.counts));
  }
  for (auto& work : pending) work->wait();
}

at::Tensor ShardedAdamw::decode(const Shard& s, int64_t at_element, int64_t n, double factor) const {
  const at::Tensor& mask = store_.group(s.group).grad_mask;
  const at::Tensor g = decode_unmasked(s, at_element, n, factor);
  return mask.defined() ? g * mask.narrow(0, s.begin + at_element, n) : g;
}

at::Tensor ShardedAdamw::decode_unmasked(const Shard& s, int64_t at_element, int64_t n,
                                         double factor) const {
  const at::Tensor& grad = store_.group(s.group).grad;
  if (!s.exact) {
    const at::Tensor g = grad.narrow(0, s.begin + at_element, n);
    return factor == 1 ? g : (g.to(at::kDouble) * factor).to(grad.scalar_type());
  }
  at::Tensor out = at::empty({n}, grad.options());
  if (out.is_cuda()) {
    device::exact_decode(s.reduced.narrow(0, at_element, n), q_, factor, out);
    return out;
  }
  const auto x = span_of<int64_t>(s.reduced).subspan(at_element, n);
  with_type(out, [&](auto zero) {
    exact_decode(std::span<const int64_t>(x), q_, factor, span_of<decltype(zero)>(out));
  });
  return out;
}

ShardedAdamw::Norms ShardedAdamw::squared_norms(bool& finite) const {
  Norms norms;
  const int64_t block = store_.block_elements();
  for (const Shard& s : shards_) {
    if (!s.counted) continue;
    std::vector<double> sums(s.size / block);
    if (s.master.is_cuda()) {
      const at::Tensor host = device::block_sums_of_squares(decode(s, 0, s.size, 1), block).cpu();
      std::copy_n(host.const_data_ptr<double>(), sums.size(), sums.data());
    } else {
      parallel_tasks(static_cast<int64_t>(sums.size()), [&](int64_t i) {
        const at::NoGradGuard no_grad;
        sums[i] = sum_of_squares(decode(s, i * block, block, 1));
      });
    }
    for (const double sum : sums) {
      if (!(sum < 0x1p40)) {
        finite = false;
        continue;
      }
      const FixedPoint128 fixed = to_fixed(sum);
      norms.total += fixed;
      if (s.group == GradGroup::kExpert) norms.experts += fixed;
    }
    if (!finite) continue;
    // Routers share blocks with other parameters: their part of each block once more.
    for (const Run& run : runs(s))
      for (int64_t begin = run.at; run.parameter->router && begin < run.at + run.n;) {
        const int64_t end = std::min(run.at + run.n, (begin / block + 1) * block);
        const at::Tensor g = decode(s, begin, end - begin, 1);
        norms.routers += to_fixed(with_type(g, [&](auto zero) {
          using T = decltype(zero);
          return block_sum_of_squares(std::span<const T>(span_of<T>(g)));
        }));
        begin = end;
      }
  }
  return norms;
}

void ShardedAdamw::update(double lr, double factor, double clip, int64_t applied_steps) {
  const double t = static_cast<double>(applied_steps);
  AdamwStep step{lr, optim_.betas[0], optim_.betas[1], optim_.eps, 0,
                 1 - std::pow(optim_.betas[0], t), 1 - std::pow(optim_.betas[1], t), clip};
  for (Shard& s : shards_) {
    at::Tensor& value = store_.group(s.group).value;
    const bool bf16 = value.scalar_type() == at::kBFloat16;
    for (const Run& run : runs(s)) {
      step.weight_decay = run.parameter->decay ? optim_.weight_decay : 0;
      if (value.is_cuda()) {
        auto part = [&](const at::Tensor& t) { return t.narrow(0, run.at, run.n); };
        device::adamw(step, decode(s, run.at, run.n, factor), part(s.master), part(s.m), part(s.v),
                      value.narrow(0, s.begin + run.at, run.n));
        continue;
      }
      with_type(s.master, [&](auto zero) {
        using T = decltype(zero);
        const auto master = span_of<T>(s.master), m = span_of<T>(s.m), v = span_of<T>(s.v);
        auto* out = static_cast<char*>(value.data_ptr()) +
                    (s.begin + run.at) * static_cast<int64_t>(value.element_size());
        at::parallel_for(0, run.n, kChunk, [&](int64_t a, int64_t b) {
          for (int64_t i = a; i < b; i += kChunk) {
            const int64_t n = std::min(b - i, kChunk), k = run.at + i;
            at::NoGradGuard no_grad;
            const at::Tensor g = decode(s, k, n, factor);
            adamw<T>(step, n, span_of<T>(g).data(), &master[k], &m[k], &v[k],
                     out + i * static_cast<int64_t>(value.element_size()), bf16);
          }
        });
      });
    }
  }
}

void ShardedAdamw::publish() {
  if (quantizer_) refresh_values();  // what is on the grid already is not put there again
  for (Shard& s : shards_) {
    Communicator& comm = store_.mesh().grad_group(s.group);
    if (comm.size() == 1) continue;
    at::Tensor& value = store_.group(s.group).value;
    comm.all_gather_v(value.narrow(0, s.begin, s.size).clone(), value, s.counts);
  }
  if (quantizer_) quantizer_->apply(store_);
}

Fingerprint ShardedAdamw::fingerprint() const {
  Fingerprint f;
  for (const Shard& s : shards_) {
    if (!s.counted) continue;
    const at::Tensor master = s.master.cpu();
    for (const Run& run : runs(s)) {
      const uint64_t key = hash_name(run.parameter->name);
      for (int64_t i = 0; i < run.n; ++i) {
        const int64_t index = run.parameter->global_index(run.first + i);
        if (index < 0) continue;
        if (master.scalar_type() == at::kDouble) {
          const auto bits = std::bit_cast<uint64_t>(master.const_data_ptr<double>()[run.at + i]);
          f.add_word(static_cast<uint32_t>(bits), 2 * index, key);
          f.add_word(static_cast<uint32_t>(bits >> 32), 2 * index + 1, key);
        } else {
          f.add_word(std::bit_cast<uint32_t>(master.const_data_ptr<float>()[run.at + i]), index,
                     key);
        }
      }
    }
  }
  return f;
}

std::vector<TensorSlice> ShardedAdamw::state_slices(bool with_moments) {
  std::vector<TensorSlice> slices;
  for (Shard& s : shards_) {
    const auto type =
        s.master.scalar_type() == at::kDouble ? ElementType::kF64 : ElementType::kF32;
    std::vector<std::pair<std::string, at::Tensor*>> kinds = {{"master/", &s.master}};
    if (with_moments) kinds.insert(kinds.end(), {{"m/", &s.m}, {"v/", &s.v}});
    for (const Run& run : runs(s))
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
  for (const Shard& s : shards_) bytes += 3 * static_cast<int64_t>(s.master.nbytes());
  return bytes;
}

int64_t ShardedAdamw::exchange_bytes() const {
  int64_t bytes = 0;
  for (const Shard& s : shards_) {
    const int64_t ranks = static_cast<int64_t>(s.counts.size());
    if (s.exact && ranks > 1) bytes += (s.sum.numel() - s.size) * 8;
  }
  return bytes;
}

}  // namespace maniple

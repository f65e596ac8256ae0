#include "parallel/parameters.h"

#include "core/errors.h"
#include "core/random.h"

namespace maniple {

Precision parse_precision(const std::string& name) {
  if (name == "bf16") return Precision::kBf16;
  if (name == "fp64") return Precision::kFp64;
  MANIPLE_INVARIANT(name == "fp32", "precision {}", name);
  return Precision::kFp32;
}
at::ScalarType compute_type(Precision p) {
  return p == Precision::kBf16 ? at::kBFloat16 : accumulate_type(p);
}
at::ScalarType accumulate_type(Precision p) {
  return p == Precision::kFp64 ? at::kDouble : at::kFloat;
}

int64_t Parameter::numel() const {
  int64_t n = 1;
  for (int64_t s : shape) n *= s;
  return n;
}

int64_t Parameter::global_index(int64_t local) const {
  int64_t index = 0, stride = 1;
  for (int d = static_cast<int>(shape.size()) - 1; d >= 0; --d) {
    const int64_t i = local % shape[d] + offset[d];
    if (i >= global_shape[d]) return -1;
    local /= shape[d];
    index += i * stride;
    stride *= global_shape[d];
  }
  return index;
}

Parameter& ParameterStore::add(const std::string& name, const std::vector<int64_t>& global_shape,
                               GradGroup group, const std::vector<Shard>& shards, Init init) {
  Parameter p{.name = name,
              .global_shape = global_shape,
              .offset = std::vector<int64_t>(global_shape.size(), 0),
              .shape = global_shape,
              .group = group,
              .init = init,
              .decay = global_shape.size() >= 2,
              .value = {},
              .grad = {}};
  for (const Shard& s : shards) {
    const int64_t part = (global_shape[s.dim] + s.num_parts - 1) / s.num_parts;
    p.shape[s.dim] = part;
    p.offset[s.dim] = s.part * part;
  }
  constexpr int64_t kAlign = 64;  // every parameter starts on a cache line in every type
  Group& g = this->group(group);
  p.flat_begin = g.used;
  g.used += (p.numel() + kAlign - 1) / kAlign * kAlign;
  parameters_.push_back(std::move(p));
  g.members.push_back(&parameters_.back());
  return parameters_.back();
}

void ParameterStore::allocate(int64_t block_elements) {
  block_elements_ = block_elements;
  const auto accumulate = accumulate_type(precision_);
  const auto options = at::TensorOptions(mesh_.device());
  for (int i = 0; i < kNumGradGroups; ++i) {
    Group& g = groups_[i];
    const int64_t n = (g.used + block_elements - 1) / block_elements * block_elements;
    const bool exact = i == static_cast<int>(GradGroup::kPartial);
    g.value = at::zeros({n}, options.dtype(exact ? accumulate : compute_type(precision_)));
    g.grad = at::zeros({n}, options.dtype(accumulate));
  }
  for (Parameter& p : parameters_) {
    Group& g = group(p.group);
    p.value = g.value.narrow(0, p.flat_begin, p.numel()).view(p.shape);
    p.grad = g.grad.narrow(0, p.flat_begin, p.numel()).view(p.shape);
  }
}

void ParameterStore::zero_grad() {
  for (Group& g : groups_) g.grad.zero_();
}

Parameter& ParameterStore::find(const std::string& name) {
  for (Parameter& p : parameters_)
    if (p.name == name) return p;
  throw InternalError("no parameter " + name);
}

double initial_value(const Parameter& p, uint64_t seed, int64_t index) {
  if (p.init.kind == Init::kConstant) return p.init.value;
  const uint64_t key = key_of(seed, hash_name(p.name));
  return static_cast<float>(p.init.value * normal(key, static_cast<uint64_t>(index)));
}

}  // namespace maniple

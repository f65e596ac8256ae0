#include "trainer/checkpoint_weights.h"

#include "core/errors.h"
#include "interop/hf_names.h"

namespace maniple {

CheckpointWeights::CheckpointWeights(const CheckpointInfo& checkpoint, const ModelConfig& model,
                                     at::ScalarType type,
                                     const std::map<std::string, at::ScalarType>& types)
    : checkpoint_(checkpoint) {
  for (TensorEntry& t : list_tensors(checkpoint)) stored_.emplace(t.name, t);
  for (const NamedShape& parameter : model_parameters(model))
    for (const HubSlice& slice : hub_slices(model, parameter.name)) {
      const auto listed = types.find(slice.name);
      places_[slice.name] = {
          parameter.name,
          slice.index,
          {slice.name, listed == types.end() ? type : listed->second, slice.shape}};
    }
}

std::vector<std::string> CheckpointWeights::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

const CheckpointWeights::Place& CheckpointWeights::place(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end())
    throw DataError(fmt::format("reading the weights {}: there is no tensor {}", path(), name));
  return found->second;
}

const SafetensorsEntry& CheckpointWeights::entry(const std::string& name) const {
  return place(name).entry;
}

at::Tensor CheckpointWeights::read(const std::string& name) const {
  const Place& p = place(name);
  if (cached_name_ != p.parameter) {
    const std::string master = "master/" + p.parameter;
    const auto stored = stored_.find(master);
    if (stored == stored_.end())
      throw CheckpointError(
          fmt::format("{} has no tensor {}; it is of another model", path(), master));
    const std::vector<int64_t>& shape = stored->second.global_shape;
    const bool wide = stored->second.type == ElementType::kF64;
    cached_.reset();
    at::Tensor whole = at::empty(shape, at::TensorOptions(wide ? at::kDouble : at::kFloat));
    std::vector<TensorSlice> slices = {{master, stored->second.type, shape,
                                        std::vector<int64_t>(shape.size(), 0), shape, 0,
                                        whole.numel(), whole.data_ptr()}};
    load_slices(checkpoint_, slices);
    cached_ = whole;
    cached_name_ = p.parameter;
  }
  at::Tensor part = cached_;
  for (const int64_t i : p.index) part = part.select(0, i);
  return part.to(p.entry.dtype).contiguous().view(p.entry.shape);
}

}  // namespace maniple

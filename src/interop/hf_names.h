// Maniple's parameters and the tensors of a hub checkpoint (spec/model.md 1.12).
//
// Maniple names its parameters as a qwen3_moe checkpoint does, whatever the family, except that the
// routed experts of a layer are two tensors with a leading expert dim:
//   model.layers.I.mlp.experts.gate_up_proj  [E, 2, F, H]   (dim 1: gate, up)
//   model.layers.I.mlp.experts.down_proj     [E, H, F]
// A tied head has no parameter of its own; model.layers.I.mlp.router_bias [E] is Maniple's own.
#pragma once

#include <string>
#include <vector>

#include "interop/hub_tensors.h"
#include "model/model_config.h"

namespace maniple {

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};

// All parameters of the model, in the order of the forward pass. Shapes are global.
std::vector<NamedShape> model_parameters(const ModelConfig& model);

// One hub tensor and the part of a parameter that it is: parameter[index[0]][index[1]]...
struct HubSlice {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<int64_t> index;  // empty: the whole parameter
};

// The hub tensors of one parameter, experts one by one: what an exporter writes, and all programs
// read. `parameter` must be one of model_parameters.
std::vector<HubSlice> hub_slices(const ModelConfig& model, const std::string& parameter);

// The whole parameter, in the type in which it is stored, from per-expert hub names or from the
// merged layout of transformers 5 (experts.gate_up_proj [E, 2F, H], Mixtral under .mlp). DataError
// names the hub tensor that is missing, has another shape, or is not floating point.
at::Tensor load_parameter(const HubTensors& folder, const ModelConfig& model,
                          const std::string& parameter);

// Tensors of the folder that no parameter of the model reads, sorted: a sign that weights and
// config do not belong together. A stored copy of a tied head and RoPE tables do not count.
std::vector<std::string> unread_tensors(const HubTensors& folder, const ModelConfig& model);

}  // namespace maniple

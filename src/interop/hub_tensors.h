// The weights of a model under the names of the Hugging Face hub (spec/model.md 1.12), whatever the
// file that holds them: safetensors, packed compressed-tensors, GGUF, a checkpoint of this program.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace maniple {

// One tensor. `dtype` is the type of what read() returns.
struct SafetensorsEntry {
  std::string name;
  at::ScalarType dtype = at::ScalarType::Float;
  std::vector<int64_t> shape;
};

class HubTensors {
 public:
  virtual ~HubTensors() = default;
  virtual bool has(const std::string& name) const = 0;
  virtual std::vector<std::string> names() const = 0;  // sorted
  // DataError naming the tensor if there is none of this name.
  virtual const SafetensorsEntry& entry(const std::string& name) const = 0;
  // A copy on the CPU; what is stored quantised is dequantised, in fp32.
  virtual at::Tensor read(const std::string& name) const = 0;
  virtual const std::string& path() const = 0;  // for messages
};

}  // namespace maniple

// The weights of a checkpoint under hub names, read from the masters parameter by parameter.
#pragma once

#include <map>

#include "checkpoint/checkpoint.h"
#include "interop/hub_tensors.h"
#include "model/model_config.h"

namespace maniple {

class CheckpointWeights : public HubTensors {
 public:
  // Tensors are handed out in `type`, or in the type of `types` (by hub name) where it is listed.
  CheckpointWeights(const CheckpointInfo& checkpoint, const ModelConfig& model, at::ScalarType type,
                    const std::map<std::string, at::ScalarType>& types);

  bool has(const std::string& name) const override { return places_.count(name) > 0; }
  std::vector<std::string> names() const override;
  const SafetensorsEntry& entry(const std::string& name) const override;
  at::Tensor read(const std::string& name) const override;
  const std::string& path() const override { return checkpoint_.folder; }

 private:
  struct Place {
    std::string parameter;
    std::vector<int64_t> index;  // part of the parameter (HubSlice)
    SafetensorsEntry entry;
  };
  const Place& place(const std::string& name) const;

  const CheckpointInfo checkpoint_;
  std::map<std::string, Place> places_;
  std::map<std::string, TensorEntry> stored_;
  mutable std::string cached_name_;  // the parameter read last: experts come one after the other
  mutable at::Tensor cached_;
};

}  // namespace maniple

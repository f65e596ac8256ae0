// Folders of the compressed-tensors format `pack-quantized` (spec/model.md 4.6): symmetric 4-bit
// weights. A linear module M holds in place of M.weight
//   M.weight_packed  I32 [O, ceil(I / 8)]   word = sum over j of (q[8c + j] + 8) << 4j
//   M.weight_scale   F32 or BF16 [O, groups]
//   M.weight_shape   I64 [2] = (O, I)
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "interop/hub_tensors.h"
#include "quant/grid.h"

namespace maniple {

struct PackedWeight {
  at::Tensor packed, scale, shape;
};
// scale is stored in the grid's model type.
PackedWeight pack_weight(const Grid& grid, const at::Tensor& w_OI);
// The weights in fp32. The parts' types and shapes must agree (as check_packed has found).
at::Tensor unpack_weight(const PackedWeight& parts);

// config.json's quantization_config: `modules_ignored` are the linear modules that stay as they
// are.
nlohmann::ordered_json quantization_config(const Grid& grid,
                                           const std::vector<std::string>& modules_ignored);
// Throws DataError unless a config.json says what this program reads: pack-quantized, 4 bits,
// symmetric, weights only.
void check_quantization_config(const nlohmann::json& section, const std::string& path);

// Packed weights under their plain names, dequantised when read.
class CompressedFolder : public HubTensors {
 public:
  // Takes the tensors of the folder as they are. Throws DataError for a module whose parts do not
  // belong together.
  explicit CompressedFolder(std::unique_ptr<HubTensors> stored);

  bool has(const std::string& name) const override;
  std::vector<std::string> names() const override;
  const SafetensorsEntry& entry(const std::string& name) const override;
  at::Tensor read(const std::string& name) const override;
  const std::string& path() const override { return stored_->path(); }

 private:
  std::unique_ptr<HubTensors> stored_;
  std::map<std::string, SafetensorsEntry> packed_;  // by plain name
};

}  // namespace maniple

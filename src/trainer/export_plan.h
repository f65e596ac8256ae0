// What becomes of each tensor in an export: the rules that all formats share.
#pragma once

#include <string>
#include <vector>

#include "interop/gguf_file.h"
#include "trainer/export.h"
#include "trainer/model_source.h"

namespace maniple {

// One hub tensor of the exported model. `type`: how it is stored where it is not packed (int4 in
// compressed-tensors); kQ4_0 and kQ8_0 in GGUF only.
struct ExportTensor {
  std::string name, parameter;
  std::vector<int64_t> shape;
  GgufType type = GgufType::kF32;
  bool on_grid = false;  // its values are those of the plan's grid
  bool packed = false;   // int4 of compressed-tensors
};

struct ExportPlan {
  std::optional<Grid> grid;           // of q4_0 and int4_*
  std::string quant;                  // the word, "" for the model's own type
  std::vector<ExportTensor> tensors;  // in the order of the forward pass
  std::vector<std::string> notes;     // what is left unquantised, and why
  const ExportTensor& find(const std::string& name) const;
};

// Throws ConfigError and UsageError for what does not fit together.
ExportPlan plan_export(const ModelSource& source, const ExportRequest& request);

// What reading the exported tensor gives, in fp32, from the source's tensor: computed with the
// trainer's own fake quantisation, not with the file's encoding.
at::Tensor as_exported(const ExportPlan& plan, const ExportTensor& tensor, const at::Tensor& w);

at::ScalarType scalar_type(GgufType type);  // of F32, F16, BF16

}  // namespace maniple

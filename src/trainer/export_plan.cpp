#include "trainer/export_plan.h"

#include <algorithm>
#include <map>

#include "core/errors.h"
#include "interop/gguf_blocks.h"
#include "interop/hf_names.h"
#include "quant/fake_quantizer.h"

namespace maniple {
namespace {

constexpr const char* kHouse = "house";

std::string words(const std::string& format) {
  if (format == "gguf") return "q4_0, q8_0, bf16 or f16";
  if (format == "compressed-tensors") return "int4_g32, int4_g128 or int4_channel";
  return "bf16 or f16";
}

bool format_has(const std::string& format, const std::string& quant) {
  if (format == "gguf")
    return quant == "q4_0" || quant == "q8_0" || quant == "bf16" || quant == "f16";
  if (format == "compressed-tensors") return quant.starts_with("int4_");
  return quant == "bf16" || quant == "f16";
}

// The word of --quant, after the rules of what was trained.
std::string choose_quant(const ModelSource& source, const ExportRequest& request) {
  const bool trained = source.format != "none";
  std::string quant = request.quant;
  if (trained && quant.empty()) quant = source.format;
  if (trained && quant != source.format && !request.requantize)
    throw UsageError(
        fmt::format("cannot export {} with --quant {}: it was trained on the grid {}, and another "
                    "one throws that "
                    "training away; leave --quant out, or insist with --requantise",
                    request.model, quant, source.format));
  if (quant == "sfp8")
    throw ConfigError(fmt::format(
        "cannot export {} as {}: no file format holds the grid sfp8 that it was trained on; choose "
        "--quant {} with --requantise",
        request.model, request.format, words(request.format)));
  if (request.format == "hf" && trained && quant == source.format)
    return quant;  // as plain weights
  if (quant.empty() && request.format == "compressed-tensors")
    throw UsageError(
        fmt::format("cannot export {} as compressed-tensors without a grid: add --quant {}",
                    request.model, words(request.format)));
  if (!quant.empty() && !format_has(request.format, quant))
    throw UsageError(
        fmt::format("cannot export {} with --quant {} --format {}: this format holds {}",
                    request.model, quant, request.format, words(request.format)));
  return quant;
}

GgufType plain_type(at::ScalarType type) {
  if (type == at::kBFloat16) return GgufType::kBF16;
  return type == at::kHalf ? GgufType::kF16 : GgufType::kF32;
}

bool is_router(const std::string& parameter) {
  return parameter.ends_with("mlp.gate.weight") || parameter.ends_with("shared_expert_gate.weight");
}

}  // namespace

const ExportTensor& ExportPlan::find(const std::string& name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const ExportTensor& t) { return t.name == name; });
  MANIPLE_INVARIANT(found != tensors.end(), "no tensor {}", name);
  return *found;
}

ExportPlan plan_export(const ModelSource& source, const ExportRequest& request) {
  if (source.model.model_type == kHouse)
    throw ConfigError(fmt::format(
        "cannot export {}: the house preset is no family that another program knows; train one of "
        "qwen3_moe, qwen2_moe, mixtral or gemma3_text",
        request.model));
  ExportPlan plan;
  plan.quant = choose_quant(source, request);
  const bool gguf = request.format == "gguf", hf = request.format == "hf";
  const bool on_trained_grid = plan.quant == source.format && source.grid.has_value();
  if (on_trained_grid)
    plan.grid = source.grid;
  else if (plan.quant == "q4_0" || plan.quant.starts_with("int4_"))
    plan.grid = make_grid(plan.quant, source.model_type);
  if (plan.grid) check_grid_on_model(*plan.grid, plan.quant, source.model);

  std::map<std::string, std::vector<std::string>> left;  // by reason
  for (const NamedShape& parameter : model_parameters(source.model))
    for (const HubSlice& slice : hub_slices(source.model, parameter.name)) {
      ExportTensor t{slice.name, parameter.name, slice.shape};
      const bool matrix = slice.shape.size() == 2 && slice.shape[0] > 1;
      const at::ScalarType own = source.weights->entry(slice.name).dtype;
      t.type = plain_type(own == at::kDouble ? at::kFloat : own);
      if (gguf && (!matrix || is_router(parameter.name))) t.type = GgufType::kF32;
      if (hf && plan.grid) t.type = GgufType::kF32;  // no 16-bit type holds the values of a grid
      if (plan.grid && is_quantizable(parameter.name)) {
        const std::string why = why_not_on_grid(*plan.grid, parameter.name, parameter.shape);
        if (!why.empty()) {
          left[why].push_back(slice.name);
        } else {
          t.on_grid = true;
          t.packed = request.format == "compressed-tensors";
          if (gguf) t.type = GgufType::kQ4_0;
        }
      } else if (!plan.grid && plan.quant == "q8_0") {
        if (matrix && !is_router(parameter.name) &&
            slice.shape[1] % gguf_block(GgufType::kQ8_0) == 0) {
          t.type = GgufType::kQ8_0;
        } else if (matrix && !is_router(parameter.name)) {
          left[fmt::format("rows of {} are no multiple of 32", slice.shape[1])].push_back(
              slice.name);
        }
      } else if (!plan.grid && !plan.quant.empty() &&
                 (!gguf || (matrix && !is_router(parameter.name)))) {
        t.type = plan.quant == "bf16" ? GgufType::kBF16 : GgufType::kF16;
      }
      plan.tensors.push_back(std::move(t));
    }
  for (const auto& [why, names] : left)
    plan.notes.push_back(
        fmt::format("left unquantised: {}{}: {}", names.front(),
                    names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "", why));
  return plan;
}

at::ScalarType scalar_type(GgufType type) {
  if (type == GgufType::kBF16) return at::kBFloat16;
  return type == GgufType::kF16 ? at::kHalf : at::kFloat;
}

at::Tensor as_exported(const ExportPlan& plan, const ExportTensor& tensor, const at::Tensor& w) {
  if (tensor.on_grid) {
    at::Tensor fake = w.to(at::kFloat).clone();
    fake_quantize_(*plan.grid, fake);
    return fake;
  }
  if (tensor.type == GgufType::kQ8_0)
    return gguf_decode(tensor.type, gguf_encode(tensor.type, w).data(), w.numel()).view(w.sizes());
  return w.to(scalar_type(tensor.type)).to(at::kFloat);
}

}  // namespace maniple

#include "quant/fake_quantizer.h"

#include <algorithm>
#include <map>

#include "core/errors.h"

namespace maniple {
namespace {

bool has_routed_experts(const std::string& parameter) {
  return parameter.find(".experts.") != parameter.npos;
}

void check_rows(const Grid& grid, const std::string& format, const char* axis, int64_t degree,
                const char* what, int64_t inputs) {
  if (degree == 1 || !grid.divides(inputs)) return;  // whole rows, or left off the grid
  const bool whole = grid.group > 0 && inputs % degree == 0 && inputs / degree % grid.group == 0;
  if (whole) return;
  throw ConfigError(fmt::format(
      "quant.format={} takes one scale for {} inputs, and parallel.{}={} divides the {} inputs of "
      "{} "
      "among ranks; a scale must not straddle ranks: choose {}",
      format, grid.group ? std::to_string(grid.group) : "all", axis, degree, inputs, what,
      grid.group ? fmt::format("a {} that divides {}", axis, inputs / grid.group)
                 : fmt::format("parallel.{}=1", axis)));
}

bool any_layer(const ModelConfig& model, bool moe) {
  return std::any_of(model.layers.begin(), model.layers.end(),
                     [moe](const LayerConfig& layer) { return layer.moe == moe; });
}

}  // namespace

bool is_quantizable(const std::string& parameter) {
  return parameter.ends_with("_proj.weight") || parameter.ends_with(".experts.gate_up_proj") ||
         parameter.ends_with(".experts.down_proj");
}

std::string why_not_on_grid(const Grid& grid, const std::string& parameter,
                            const std::vector<int64_t>& shape) {
  std::vector<int64_t> widths{shape.back()};
  if (grid.kind == GridKind::kInt4Group && has_routed_experts(parameter))
    widths.push_back(shape[shape.size() - 2]);  // the inputs of the expert's other matrices
  for (const int64_t width : widths)
    if (!grid.divides(width))
      return fmt::format("rows of {} are no multiple of {}", width, grid.group);
  return "";
}

bool on_grid(const Grid& grid, const std::string& parameter, const std::vector<int64_t>& shape) {
  return is_quantizable(parameter) && why_not_on_grid(grid, parameter, shape).empty();
}

void check_grid_on_model(const Grid& grid, const std::string& format, const ModelConfig& model) {
  const bool experts = any_layer(model, true);
  const int64_t hidden = model.hidden_size, width = model.expert_size;
  if (grid.kind == GridKind::kInt4Group && experts &&
      !(grid.divides(hidden) && grid.divides(width)))
    throw ConfigError(
        fmt::format("the grid {} needs a hidden_size and a width of the experts that are multiples "
                    "of {}, and they are {} "
                    "and {}; choose int4_channel or q4_0",
                    format, grid.group, hidden, width));
  const bool any = grid.divides(hidden) || grid.divides(model.num_heads * model.head_dim) ||
                   (experts && grid.divides(width)) ||
                   (any_layer(model, false) && grid.divides(model.intermediate_size));
  if (!any)
    throw ConfigError(
        fmt::format("the grid {} takes rows that are multiples of {}, and no matrix of this model "
                    "has them (hidden_size "
                    "{}); choose int4_channel",
                    format, grid.group, hidden));
}

void check_grid_on_mesh(const Grid& grid, const std::string& format, const ModelConfig& model,
                        const MeshShape& mesh) {
  check_grid_on_model(grid, format, model);
  check_rows(grid, format, "tp", mesh.tp, "o_proj", model.num_heads * model.head_dim);
  if (any_layer(model, false))
    check_rows(grid, format, "tp", mesh.tp, "down_proj", model.intermediate_size);
  if (!any_layer(model, true)) return;
  if (model.shared_expert_size > 0)
    check_rows(grid, format, "tp", mesh.tp, "the shared expert's down_proj",
               model.shared_expert_size);
  check_rows(grid, format, "etp", mesh.etp, "the experts' down_proj", model.expert_size);
}

std::vector<std::string> FakeQuantizer::left_off(const ParameterStore& store) const {
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const Parameter& p : store.parameters()) {
    if (!is_quantizable(p.name)) continue;
    const std::string why = why_not_on_grid(grid_, p.name, p.global_shape);
    if (!why.empty()) by_reason[why].push_back(p.name);
  }
  std::vector<std::string> lines;
  for (const auto& [why, names] : by_reason)
    lines.push_back(
        fmt::format("not quantised: {}{}: {}", names.front(),
                    names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "", why));
  return lines;
}

void FakeQuantizer::apply(ParameterStore& store) const {
  const at::NoGradGuard no_grad;
  for (Parameter& p : store.parameters()) {
    if (!on_grid(grid_, p.name, p.global_shape)) {
      // Wider than the training's own working copy: only where a trained model is evaluated.
      if (grid_.model_type == at::kBFloat16 && p.group != GradGroup::kPartial)
        p.value.copy_(p.value.to(grid_.model_type));
      continue;
    }
    if (!clipped_) {
      fake_quantize_(grid_, p.value);
      continue;
    }
    auto& group = store.group(p.group);
    if (!group.grad_mask.defined())
      group.grad_mask = at::ones(group.grad.sizes(), group.grad.options().dtype(at::kBool));
    fake_quantize_(grid_, p.value,
                   group.grad_mask.narrow(0, p.flat_begin, p.numel()).view(p.shape));
  }
}

}  // namespace maniple

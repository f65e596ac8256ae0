#include "quant/grid.h"

#include <ATen/Dispatch.h>

#include "core/errors.h"
#include "kernels/parallel_tasks.h"
#include "quant/grid_rows.h"

namespace maniple {
namespace {

using namespace grid_rows;

constexpr int64_t kTaskElements = 1 << 16;

// Scaled so that the largest magnitude is 1.875, rounded, scaled back: in place.
void fake_quantize_sfp8(const Grid& grid, float* w, int64_t n) {
  const float s = stored_as(grid.model_type, largest_magnitude(w, n) / 1.875f);
  for (int64_t i = 0; i < n; ++i) w[i] = s == 0 ? 0 : round_sfp8(w[i] / s) * s;
}

template <typename Note>
void fake_quantize_row(const Grid& grid, float* w, int64_t n, const Note& note_at) {
  if (grid.kind == GridKind::kSfp8) return fake_quantize_sfp8(grid, w, n);
  const float s = quantize_group(grid, w, n, w, note_at);
  for (int64_t i = 0; i < n; ++i) w[i] *= s;
}

template <typename T>
void fake_quantize_host(const Grid& grid, T* w, bool* inside, int64_t numel, int64_t inputs) {
  const int64_t group = grid.group_of(inputs), num_groups = numel / group;
  const bool round =
      grid.model_type == at::ScalarType::BFloat16 && !std::is_same_v<T, c10::BFloat16>;
  const int64_t grain = std::max<int64_t>(1, kTaskElements / group);
  parallel_ranges(num_groups, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> row(group);
    for (int64_t g = begin; g < end; ++g) {
      T* at = w + g * group;
      for (int64_t i = 0; i < group; ++i) row[i] = static_cast<float>(at[i]);
      if (round)
        for (float& x : row) x = stored_as(grid.model_type, x);
      if (inside)
        fake_quantize_row(grid, row.data(), group, Mask{inside + g * group});
      else
        fake_quantize_row(grid, row.data(), group, NoMask{});
      for (int64_t i = 0; i < group; ++i) at[i] = static_cast<T>(row[i]);
    }
  });
}

at::Tensor reference_sfp8(const at::Tensor& x) {
  const at::Tensor magnitude = x.abs();
  const at::Tensor power = magnitude.view(at::kInt).bitwise_and(0x7f800000).view(at::kFloat);
  const at::Tensor step = power * at::where(magnitude >= 0x1p-7, 0.125, 0.25).to(x.scalar_type());
  at::Tensor y = at::where(magnitude > 0, (magnitude / step).round() * step, at::zeros_like(x));
  y = at::where(y == 0x1p-23, at::full_like(y, 0x1.4p-23),
                at::where(y < 0x1p-23, at::zeros_like(y), y));
  return at::copysign(y, x);
}

}  // namespace

Grid make_grid(const std::string& format, at::ScalarType model_type) {
  const auto type = model_type == at::ScalarType::BFloat16 ? model_type : at::ScalarType::Float;
  if (format == "int4_channel") return {GridKind::kInt4Channel, 0, type};
  if (format == "q4_0") return {GridKind::kQ4_0, 32, type};
  if (format == "int4_g32") return {GridKind::kInt4Group, 32, type};
  if (format == "int4_g128") return {GridKind::kInt4Group, 128, type};
  if (format == "sfp8") return {GridKind::kSfp8, 0, type};
  throw ConfigError(fmt::format(
      "no grid is called '{}'; choose int4_channel, q4_0, int4_g32, int4_g128 or sfp8", format));
}

Quantized quantize(const Grid& grid, const at::Tensor& w_OI) {
  MANIPLE_INVARIANT(grid.kind != GridKind::kSfp8 && w_OI.dim() == 2 && w_OI.is_cpu() &&
                        grid.divides(w_OI.size(1)),
                    "a matrix of {} dims", w_OI.dim());
  const int64_t inputs = w_OI.size(1), group = grid.group_of(inputs);
  const at::Tensor w = w_OI.to(grid.model_type).to(at::kFloat).contiguous();
  const at::Tensor q = at::empty(w.sizes(), w.options().dtype(at::kChar));
  const at::Tensor scale = at::empty({w.size(0), inputs / group}, w.options());
  const float* from = w.const_data_ptr<float>();
  auto* to = q.data_ptr<int8_t>();
  auto* scales = scale.data_ptr<float>();
  parallel_ranges(
      scale.numel(), std::max<int64_t>(1, kTaskElements / group), [&](int64_t begin, int64_t end) {
        std::vector<float> row(group);
        for (int64_t g = begin; g < end; ++g) {
          scales[g] = quantize_group(grid, from + g * group, group, row.data(), NoMask{});
          for (int64_t i = 0; i < group; ++i) to[g * group + i] = static_cast<int8_t>(row[i]);
        }
      });
  return {q, scale};
}

at::Tensor dequantize(const Quantized& x) {
  const int64_t rows = x.q_OI.size(0), groups = x.scale_OG.size(1);
  const at::Tensor q = x.q_OI.to(at::kFloat).view({rows, groups, -1});
  return (q * x.scale_OG.unsqueeze(2)).view(x.q_OI.sizes());
}

void fake_quantize_(const Grid& grid, at::Tensor w, at::Tensor inside) {
  MANIPLE_INVARIANT(w.is_contiguous() && grid.divides(w.size(-1)), "{} inputs", w.size(-1));
  if (inside.defined() && grid.kind == GridKind::kSfp8) inside.fill_(true);
  if (!w.is_cpu()) {
    w.copy_(fake_quantize_reference(grid, w, inside.defined() ? &inside : nullptr));
    return;
  }
  bool* mask = inside.defined() ? inside.data_ptr<bool>() : nullptr;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, w.scalar_type(), "fake_quantize", [&] {
    fake_quantize_host(grid, w.data_ptr<scalar_t>(), mask, w.numel(), w.size(-1));
  });
}

at::Tensor fake_quantize_reference(const Grid& grid, const at::Tensor& w, at::Tensor* inside) {
  const int64_t group = grid.group_of(w.size(-1));
  const at::Tensor x = w.to(at::kFloat).to(grid.model_type).to(at::kFloat).reshape({-1, group});
  const auto stored = [&](const at::Tensor& scale) {
    return scale.to(grid.model_type).to(at::kFloat);
  };
  const at::Tensor zero = at::zeros({1}, x.options());
  // By a tensor: a division by a scalar is a product with its inverse on some devices.
  const auto over = [](const at::Tensor& t, double divisor) {
    return t / at::full_like(t, divisor);
  };
  const at::Tensor a = x.abs().amax(1, true);
  at::Tensor y, in;
  if (grid.kind == GridKind::kInt4Channel || grid.kind == GridKind::kInt4Group) {
    const at::Tensor s = stored(over(a, grid.kind == GridKind::kInt4Channel ? 7 : 7.5));
    const at::Tensor rounded = at::where(s > 0, (x / s).round(), zero);
    in = (rounded >= -8).logical_and(rounded <= 7);
    y = rounded.clamp(-8, 7) * s;
  } else if (grid.kind == GridKind::kQ4_0) {
    const at::Tensor i = at::arange(group, x.options().dtype(at::kLong)).expand_as(x);
    const at::Tensor first = at::where(x.abs() == a, i, group - 1).amin(1, true);
    const at::Tensor d = over(x.gather(1, first), -8), inverse = at::ones_like(d) / d;
    const at::Tensor code = (x * at::where(inverse.abs() < 0x1p127, inverse, zero) + 8.5).trunc();
    in = code <= 15;
    y = (code.clamp_max(15) - 8) * d.to(at::kHalf).to(at::kFloat);
  } else {
    const at::Tensor s = stored(over(a, 1.875));
    y = at::where(s > 0, reference_sfp8(x / s) * s, zero);
  }
  if (inside && in.defined()) inside->copy_(in.view(w.sizes()));
  if (inside && !in.defined()) inside->fill_(true);  // sfp8
  return y.view(w.sizes()).to(w.scalar_type());
}

}  // namespace maniple

// The grids on which weights are quantised (spec/model.md 4.2 and 4.3): what a scale is taken from,
// how integers are rounded, and in which type scales are stored. A weight matrix is w_OI [outputs,
// inputs]; a scale belongs to `group` consecutive inputs of one output, or to the whole row.
//
//   format        scale                          integers
//   int4_channel  a / 7, per row                 round(w / s), half to even: -7 … 7
//   q4_0          d = m / -8, per 32, in fp16    min(15, trunc(w / d + 8.5)) - 8
//   int4_g32/128  a / 7.5, per 32 or 128         clip(round(w / s), -8, 7), half to even
//   sfp8          a / 1.875, per row             none: 3 or 2 bits of mantissa below a sign
//
// a: largest magnitude of the group; m: its first element of that magnitude, with its sign.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace maniple {

enum class GridKind { kInt4Channel, kQ4_0, kInt4Group, kSfp8 };

struct Grid {
  GridKind kind = GridKind::kQ4_0;
  int64_t group = 32;  // inputs per scale; 0: the whole row
  // The model's type: kBFloat16 or kFloat. Weights are rounded to it first; a scale of the kInt4
  // grids and of sfp8 is stored in it (one of q4_0 in fp16).
  at::ScalarType model_type = at::ScalarType::Float;

  int64_t group_of(int64_t inputs) const { return group ? group : inputs; }
  bool divides(int64_t inputs) const { return inputs % group_of(inputs) == 0; }
  bool operator==(const Grid&) const = default;
};

// The grid of a quant.format other than none. Throws ConfigError for an unknown word.
Grid make_grid(const std::string& format, at::ScalarType model_type);

// Weights as a file stores them. O outputs, I inputs, G groups of a row.
struct Quantized {
  at::Tensor q_OI;      // int8, -8 … 7
  at::Tensor scale_OG;  // float; its values are exact in the type in which the scale is stored
};

// w_OI: floating point, on the host; inputs divisible by the group. Not for sfp8.
Quantized quantize(const Grid& grid, const at::Tensor& w_OI);
// q times scale in fp32.
at::Tensor dequantize(const Quantized& quantized);

// dequantize(quantize(w)) for every grid, in the type of w; leading dims are rows. `inside` (bool,
// shape of w), if given, receives where the rounded value was in range: where the clipped
// straight-through estimator lets the gradient pass. On the host fused, elsewhere the reference;
// both give the same bits.
void fake_quantize_(const Grid& grid, at::Tensor w, at::Tensor inside = {});
// The same by tensor expressions on any device.
at::Tensor fake_quantize_reference(const Grid& grid, const at::Tensor& w, at::Tensor* inside);

}  // namespace maniple

// Gated activation of a feed-forward layer, forward and backward, each one pass. N rows, F width;
// h [N, 2F] holds gate | up. fp32 or bf16 with fp32 arithmetic; other types and devices: the ATen
// reference beside it.
#pragma once

#include <ATen/core/Tensor.h>

namespace maniple {

enum class Activation { kSilu, kGeluTanh };

at::Tensor activate(Activation activation, const at::Tensor& x);

// weight_n act(gate) up [N, F]; weight_N (accumulation type) may be undefined: 1.
at::Tensor glu_forward(Activation activation, const at::Tensor& h, const at::Tensor& weight_N);

// Backward. Replaces h by its gradient; returns that of the weight [N], accumulation type, undefined
// without a weight.
at::Tensor glu_backward(Activation activation, const at::Tensor& dy_NF, at::Tensor h,
                        const at::Tensor& weight_N);

}  // namespace maniple

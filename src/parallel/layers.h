// The differentiable pieces of the model that hold parameters or talk to other ranks. Backward adds
// each parameter's gradient into Parameter::grad (accumulation type); activations flow through
// autograd. Shape letters: T tokens, D model, O outputs, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include "parallel/parameters.h"

namespace maniple {

// y_TO = x_TD W_OD^T (+ b_O), on this rank's shard of W and in its type. x may have leading dims.
at::Tensor linear(const at::Tensor& x, Parameter& weight, Parameter* bias = nullptr);

// RMSNorm over the last dim, in fp32 (fp64). plus_one: y = cast(r(x) (1 + w)), else w cast(r(x)).
at::Tensor rms_norm(const at::Tensor& x, Parameter& weight, double eps, bool plus_one);

// Rows of a vocabulary-parallel table [V/tp, D] for ids (int64, any shape). Collective over tp.
at::Tensor embed(const at::Tensor& ids, Parameter& table, Communicator& tp);

// Megatron's f: identity forward, sum over tp backward (in rank order). Collective over tp.
at::Tensor enter_tensor_parallel(const at::Tensor& x, Communicator& tp);
// Megatron's g: sum over tp forward (in rank order), identity backward. Collective over tp.
at::Tensor leave_tensor_parallel(const at::Tensor& x, Communicator& tp);
// This rank's chunk of the rows of a tensor that all tp ranks hold; backward gathers. ceil(T / tp)
// rows a rank, the last ones fewer. Collective over tp in backward.
at::Tensor split_tokens(const at::Tensor& x_TD, Communicator& tp);
// The inverse: all rows from everybody's chunk. Collective over tp in forward.
at::Tensor gather_tokens(const at::Tensor& x_TD, int64_t num_tokens, Communicator& tp);

// Rows exchanged between the ranks of `comm`; backward sends the gradients back. Collective.
at::Tensor exchange_rows(const at::Tensor& x_TD, const std::vector<int64_t>& send_rows,
                         const std::vector<int64_t>& recv_rows, Communicator& comm);
// x[index] for a bijection `index` (int64 [T]) whose inverse is `inverse`.
at::Tensor permute_rows(const at::Tensor& x_TD, const at::Tensor& index, const at::Tensor& inverse);

}  // namespace maniple

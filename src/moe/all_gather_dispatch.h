// The reference dispatcher (moe.dispatcher: all_gather): every rank of the ep x etp group sees the
// tokens of all, computes those of its own experts, and each token's results are added over the
// ranks. More bytes and more memory than all_to_all, but nothing to plan and little to get wrong;
// the two agree to round-off. Shape letters: T this rank's tokens, D model, K experts per token.
#pragma once

#include <functional>

#include "moe/router.h"

namespace maniple {

// Computes token slots that are sorted by local expert: (x_ND, weight_N, counts) -> y_ND.
using ExpertFunction = std::function<at::Tensor(const at::Tensor&, const at::Tensor&,
                                                const std::vector<int64_t>&)>;

// y_TD of this rank's tokens. The rank holds the experts [first_expert, first_expert + num_local).
// Partial results are added in the accumulation type, in the order of the ranks. Collective over
// `group`, in forward and backward.
at::Tensor all_gather_dispatch(const at::Tensor& x_TD, const Routing& routing, int64_t first_expert,
                               int64_t num_local, Communicator& group,
                               const ExpertFunction& experts);

}  // namespace maniple

// The memory guard of moe.max_tokens: a rank that receives more token slots than the budget runs
// its experts in chunks, each recomputed in backward, so that the expert intermediates of one chunk
// exist at a time. The budget is a number of the config, never the free memory: chunking changes
// the order of the sums in the experts' weight gradients, and so their last bits.
#pragma once

#include "moe/experts.h"

namespace maniple {

// As experts.forward(x_ND, weight_N, counts), in chunks of at most max_tokens rows when there are
// more; 0: no limit. A chunk may begin and end inside an expert. Communicates nothing. `again` makes
// x_ND once more; only without chunks, which keep it.
at::Tensor run_experts(Experts& experts, const at::Tensor& x_ND, const at::Tensor& weight_N,
                       const std::vector<int64_t>& counts, int64_t max_tokens,
                       std::function<at::Tensor()> again = {});

// Rows of each chunk that belong to each expert: chunks of max_tokens rows, the last one shorter.
// counts {3, 0, 4}, max_tokens 4 -> {3, 0, 1}, {0, 0, 3}.
std::vector<std::vector<int64_t>> split_counts(const std::vector<int64_t>& counts,
                                               int64_t max_tokens);

}  // namespace maniple

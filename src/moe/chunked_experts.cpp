#include "moe/chunked_experts.h"

#include <algorithm>

#include "model/recompute.h"

namespace maniple {

std::vector<std::vector<int64_t>> split_counts(const std::vector<int64_t>& counts,
                                               int64_t max_tokens) {
  std::vector<std::vector<int64_t>> chunks;
  int64_t room = 0;
  for (size_t e = 0; e < counts.size(); ++e)
    for (int64_t left = counts[e]; left > 0;) {
      if (room == 0) {
        chunks.emplace_back(counts.size(), 0);
        room = max_tokens;
      }
      const int64_t n = std::min(left, room);
      chunks.back()[e] += n;
      left -= n;
      room -= n;
    }
  return chunks;
}

at::Tensor run_experts(Experts& experts, const at::Tensor& x_ND, const at::Tensor& weight_N,
                       const std::vector<int64_t>& counts, int64_t max_tokens,
                       std::function<at::Tensor()> again) {
  if (max_tokens == 0 || x_ND.size(0) <= max_tokens)
    return experts.forward(x_ND, weight_N, counts, std::move(again));
  // split, not narrow: its backward puts the chunks' gradients together in one pass.
  const auto x = x_ND.split(max_tokens), weight = weight_N.split(max_tokens);
  const auto chunks = split_counts(counts, max_tokens);
  std::vector<at::Tensor> y;
  for (size_t c = 0; c < chunks.size(); ++c)
    y.push_back(recompute({x[c], weight[c]}, [&experts, rows = chunks[c]](
                                                 const std::vector<at::Tensor>& in, bool) {
                  return std::vector<at::Tensor>{experts.forward(in[0], in[1], rows)};
                })[0]);
  return at::cat(y);
}

}  // namespace maniple

// Keys and values of the tokens that a decoder has seen, so that the next token costs one row.
// Shape letters: B rows, H key-value heads of this rank, S tokens, d head dim.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

namespace maniple {

// Of one layer. A sliding layer keeps only what later tokens may still attend to.
class KvCache {
 public:
  // Adds k and v [B, H, n, d] of new tokens; returns the kept ones before and the new ones, in the
  // order of the tokens. max_before: how many earlier tokens a new one can see (below 0: all). The
  // tensors returned are views that the next call overwrites.
  std::pair<at::Tensor, at::Tensor> append(const at::Tensor& k, const at::Tensor& v,
                                           int64_t max_before);

 private:
  at::Tensor k_, v_;              // [B, H, capacity, d]
  int64_t begin_ = 0, end_ = 0;  // kept tokens
};

// Of a decoder: all rows have seen the same number of tokens.
struct DecoderCache {
  int64_t num_tokens = 0;
  std::vector<KvCache> layers;  // the decoder makes them on first use
};

}  // namespace maniple

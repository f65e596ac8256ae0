// Grouped-query self-attention with RoPE, optional QK-norm, biases, sliding window and document
// masks; heads split over tp. Shape letters: B rows, S positions, D model, H heads, d head dim.
#pragma once

#include "model/kv_cache.h"
#include "model/model_config.h"
#include "parallel/layers.h"

namespace maniple {

// What all layers of one forward share: rotation tables and masks of its rows.
struct AttentionInputs {
  at::Tensor cos_full, sin_full, cos_sliding, sin_sliding;  // [B, S, d/2], run type
  // int32 [B, S], CPU: the first position that each may attend to. A document begins where the id
  // of the one before it changes.
  at::Tensor first_full, first_sliding;
};

// position, document: int64 [B, S].
AttentionInputs make_attention_inputs(const ModelConfig& model, const at::Tensor& position,
                                      const at::Tensor& document, at::ScalarType type);

class Attention {
 public:
  Attention(const ModelConfig& model, const std::string& prefix, bool sliding,
            ParameterStore& store);
  // x_BSD -> [B, S, D]. Collective over tp.
  at::Tensor forward(const at::Tensor& x_BSD, const AttentionInputs& inputs);
  // The same for tokens that follow those in the cache, which takes them up: no gradient, one
  // document a row; of `inputs` only the rotations are used. Collective over tp.
  at::Tensor forward(const at::Tensor& x_BSD, const AttentionInputs& inputs, KvCache& cache);

 private:
  struct Heads {
    at::Tensor q, k, v;  // [B, S, H of each, d], rotated
  };
  Heads project(const at::Tensor& x_BSD, const AttentionInputs& inputs) const;
  at::Tensor heads(const at::Tensor& x_BSD, Parameter& weight, Parameter* bias, Parameter* norm) const;

  const ModelConfig& model_;
  const bool sliding_;
  Communicator& tp_;
  Parameter *q_, *k_, *v_, *o_;
  Parameter *q_bias_ = nullptr, *k_bias_ = nullptr, *v_bias_ = nullptr;
  Parameter *q_norm_ = nullptr, *k_norm_ = nullptr;
};

}  // namespace maniple

// The decoder: embedding, layers, final norm. The head belongs to the objective, which never forms
// whole logits.
#pragma once

#include <functional>

#include "model/attention.h"
#include "model/feed_forward.h"

namespace maniple {

using FeedForwardFactory = std::function<std::unique_ptr<FeedForward>(
    int64_t layer, const std::string& prefix, ParameterStore& store)>;

class Decoder {
 public:
  // Adds its parameters to `store`, which the caller allocates afterwards. `moe` makes the
  // feed-forward of MoE layers.
  Decoder(const ModelConfig& model, ParameterStore& store, const FeedForwardFactory& moe);

  // ids, position, document: int64 [B, S]. Returns the output of the final norm [B, S, D].
  // `hidden`, when given, receives the input of every layer and the result. Collective over the
  // slice.
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& position, const at::Tensor& document,
                     std::vector<at::Tensor>* hidden = nullptr);
  Parameter& head() { return *head_; }  // [V / tp, D]

 private:
  struct Layer {
    std::unique_ptr<Attention> attention;
    std::unique_ptr<FeedForward> feed_forward;
    Parameter *before_attention, *after_attention, *before_feed_forward, *after_feed_forward;
  };
  at::Tensor norm(const at::Tensor& x, Parameter& weight) const;

  const ModelConfig& model_;
  ParameterStore& store_;
  Parameter *embedding_, *final_norm_, *head_;
  std::vector<Layer> layers_;
};

}  // namespace maniple

// The decoder: embedding, layers, final norm. The head belongs to the objective, which never forms
// whole logits.
#pragma once

#include <array>
#include <functional>
#include <utility>

#include "model/attention.h"
#include "model/feed_forward.h"

namespace maniple {

using FeedForwardFactory = std::function<std::unique_ptr<FeedForward>(
    int64_t layer, const std::string& prefix, ParameterStore& store)>;

class Decoder {
 public:
  // Adds its parameters to `store`, which the caller allocates afterwards. `moe` makes the
  // feed-forward of MoE layers. recompute: layers keep only their input for backward (recompute.h).
  Decoder(const ModelConfig& model, ParameterStore& store, const FeedForwardFactory& moe,
          bool recompute = false);

  // ids, position, document: int64 [B, S]. Returns the output of the final norm [B, S, D].
  // `hidden`, when given, receives the input of every layer and the result. Collective over the
  // slice.
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& position, const at::Tensor& document,
                     std::vector<at::Tensor>* hidden = nullptr);
  // The same for ids [B, n] that follow the tokens in `cache` (an empty one: from position 0): no
  // gradient, one document a row. Collective over the slice.
  at::Tensor forward(const at::Tensor& ids, DecoderCache& cache);
  // The layers' own losses of the last forward, in layer order, for the objective to add.
  std::vector<at::Tensor> take_losses() { return std::exchange(losses_, {}); }
  // Of the last forward, the input of each layer and of the final norm: the sums over tokens of the
  // mean squares of their elements [num_layers + 1], the same bits on any number of threads.
  std::vector<double> hidden_squares() const;
  // Called with the input of each layer and of the final norm, when they are there.
  std::function<void(const at::Tensor&)> on_hidden;
  // Called in backward when the gradients of the layer and of all that follows are complete, so the
  // flat elements of each gradient group from layer_begin(layer) on.
  std::function<void(int64_t layer)> on_backward;
  using FlatBegin = std::array<int64_t, kNumGradGroups>;
  const FlatBegin& layer_begin(int64_t layer) const { return layers_[layer].begin; }
  Parameter& head() { return *head_; }  // [V / tp, D]

 private:
  struct Layer {
    std::unique_ptr<Attention> attention;
    std::unique_ptr<FeedForward> feed_forward;
    Parameter *before_attention, *after_attention, *before_feed_forward, *after_feed_forward;
    FlatBegin begin;
  };
  at::Tensor norm(const at::Tensor& x, Parameter& weight) const;
  // cache: null in training.
  at::Tensor forward(Layer& layer, const at::Tensor& x, const AttentionInputs& inputs,
                     LayerPass& pass, KvCache* cache = nullptr) const;
  at::Tensor embedded(const at::Tensor& ids) const;
  void note_hidden(int64_t layer, const at::Tensor& x);

  const ModelConfig& model_;
  ParameterStore& store_;
  Parameter *embedding_, *final_norm_, *head_;
  std::vector<Layer> layers_;
  std::vector<at::Tensor> losses_;
  std::vector<at::Tensor> norms_;  // [B, S], of the inputs of the layers and of the final norm
  const bool recompute_;
};

}  // namespace maniple

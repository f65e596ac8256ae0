// A trained or imported model on one process and device, for evaluation, sampling and logits.
#pragma once

#include <optional>

#include "trainer/run_state.h"

namespace maniple {

class InferenceModel {
 public:
  // path: Hugging Face folder, GGUF file, checkpoint, checkpoints/ or run folder. precision: fp32,
  // bf16, fp64. device: cpu, cuda. A model that was trained on a grid computes with the weights that
  // its training used, in whatever precision; `grid` quantises any model.
  InferenceModel(const std::string& path, const std::string& precision, const std::string& device,
                 std::optional<Grid> grid = {});

  // ids [B, S] int64 -> logits [B, S, V] (accumulation type, on the device). No gradient.
  at::Tensor logits(const at::Tensor& ids);
  // The same for ids [B, n] that follow those in `cache`, which takes them up.
  at::Tensor logits(const at::Tensor& ids, DecoderCache& cache);
  // Tokens that the model looks back on: what it was trained on, else what its config allows.
  int64_t context() const { return context_; }
  // Continues `prompt` (bytes) by num_tokens draws, one row of work per token (KV cache). When the
  // context is full its older half is dropped and the newer half read again from position 0. temperature 0: the most likely token.
  // emit is called with each new token; a draw is keyed by (seed, position).
  void sample(const std::string& prompt, int64_t num_tokens, double temperature, double top_p,
              uint64_t seed, const std::function<void(int64_t)>& emit);

  const ModelConfig& model() const { return trained_->model; }
  TrainedModel& trained() { return *trained_; }
  ProcessMesh& mesh() { return *mesh_; }
  const Config& config() const { return config_; }  // of the checkpoint; defaults for hub folders
  int64_t step() const { return step_; }

 private:
  at::Tensor head_logits(const at::Tensor& h);  // output of the final norm -> logits
  Config config_;
  int64_t step_ = 0, context_ = 0;
  std::unique_ptr<ProcessMesh> mesh_;
  std::unique_ptr<TrainedModel> trained_;
};

}  // namespace maniple

// What a checkpoint holds beside the optimizer's shards, and how a run starts: from random weights,
// from given ones, or from a checkpoint.
#pragma once

#include "checkpoint/checkpoint.h"
#include "trainer/step.h"

namespace maniple {

// Views of everything that this rank stores (or loads, then every rank wants the router state), in
// the memory of its device.
std::vector<TensorSlice> state_slices(TrainedModel& model, ShardedAdamw::Blocks blocks,
                                      bool with_router, bool with_moments);

// The memory of a slice on `device` as a tensor of bytes: a view.
at::Tensor bytes_of(const TensorSlice& slice, const at::Device& device);

// Each fills the shards that this rank owns; ShardedAdamw::publish then makes the model whole.
// Random weights are a function of the seed alone.
void set_random_weights(TrainedModel& model, uint64_t seed);
// Weights of a Hugging Face folder. Throws DataError.
void load_hub_weights(TrainedModel& model, const std::string& folder);
// Those of model.init_from, else random ones. On every rank alone.
void set_initial_weights(TrainedModel& model, const Config& config);
// Without moments only weights and router state are taken. Throws CheckpointError.
void load_checkpoint(TrainedModel& model, const CheckpointInfo& checkpoint, bool with_moments);
// Of the blocks that this rank owns and, for one rank of the job, of the router's bias; those of all
// ranks combine to state_fingerprint.
Fingerprint fingerprint_of_state(TrainedModel& model, bool with_router);
// A folder that holds config.json is a hub folder, else a checkpoint (or run folder).
bool is_hub_folder(const std::string& path);

// The model of a config: preset or config.json, with overrides.
ModelConfig resolve_model(const ModelSection& section);

}  // namespace maniple

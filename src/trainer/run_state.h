// What a checkpoint holds beside the optimizer's shards, and how a run starts: from random weights,
// from given ones, or from a checkpoint.
#pragma once

#include "checkpoint/checkpoint.h"
#include "interop/hub_tensors.h"
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
// Weights of a Hugging Face folder or GGUF file. Throws DataError.
void load_hub_weights(TrainedModel& model, const HubTensors& weights);
// Those of model.init_from, else random ones. On every rank alone.
void set_initial_weights(TrainedModel& model, const Config& config);
// Without moments only weights and router state are taken. Throws CheckpointError.
void load_checkpoint(TrainedModel& model, const CheckpointInfo& checkpoint, bool with_moments);
// Keeps in `run.dir`/hub what belongs to an imported model beside its weights, for exports: from the
// folder or checkpoint (opened as `init_from`) that the weights came from, or the named config.json.
void keep_imported_files(const Config& config, const std::string& init_from);
// Of the blocks that this rank owns and, for one rank of the job, of the router's bias; those of all
// ranks combine to state_fingerprint.
Fingerprint fingerprint_of_state(TrainedModel& model, bool with_router);

// That of the whole job, as metrics.jsonl has it. Collective over a job of fixed slices.
std::string job_fingerprint(TrainedModel& model, ProcessMesh& mesh);

// The model of a config: preset or config.json, with overrides.
ModelConfig resolve_model(const ModelSection& section);

}  // namespace maniple

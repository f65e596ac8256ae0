// Checkpoints: folders `step-00001000/` that hold one HDF5 file per writer and, written last, a
// manifest.json; `latest` beside them is replaced by atomic rename. Any layout loads any other:
// everything is stored with its place in the whole, unpadded tensor. Torch- and MPI-free; writers
// of one checkpoint meet through the file system only. Format: docs/formats.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config.h"

namespace maniple {

enum class ElementType { kF32, kF64, kI64, kBf16 };
int64_t element_bytes(ElementType type);

// A run of elements of one shard of one tensor. The shard is the box [offset, offset + shape) of
// the global tensor; where it reaches beyond global_shape the elements are padding, never stored
// and zero when read. Elements [begin, end) of the shard in row-major order lie at `data`.
struct TensorSlice {
  std::string name;  // e.g. "master/model.norm.weight", "m/...", "v/...", "router_bias/..."
  ElementType type = ElementType::kF32;
  std::vector<int64_t> global_shape, offset, shape;
  int64_t begin = 0, end = 0;
  void* data = nullptr;  // host memory, read by writers and written by load
};

struct CheckpointInfo {
  int64_t step = 0;
  std::string folder;
  nlohmann::json meta;  // what the trainer stored: config, data position, seeds, environment
};

// Writes part `writer` of `num_writers` of checkpoint `step` under `root` (the run's checkpoints/
// folder). Blocking; call it from a background thread on copied data. Writer 0 waits for the other
// parts (time-out: IoError naming the missing ones), then writes manifest and `latest` and applies
// retention. `attempt` is the same on all writers and different from attempts before a restart (a
// stale part of a killed run is never taken for a new one). Throws IoError (disk full,
// permissions).
void write_checkpoint(const std::string& root, int64_t step, int writer, int num_writers,
                      const std::string& attempt, const std::vector<TensorSlice>& slices,
                      const nlohmann::json& meta, const CheckpointConfig& retention,
                      double timeout_s = 600);

// The two halves of write_checkpoint for writers that are led by somebody else: a part, and, once
// all are there, what makes them the newest checkpoint. Retention spares those from step `keep_from`
// on.
void write_checkpoint_part(const std::string& root, int64_t step, int writer, int num_writers,
                           const std::string& attempt, const std::vector<TensorSlice>& slices);
void publish_checkpoint(const std::string& root, int64_t step, int num_writers,
                        const std::string& attempt, const nlohmann::json& meta,
                        const CheckpointConfig& retention, int64_t keep_from = INT64_MAX,
                        double timeout_s = 600);
// Removes the checkpoints after a step, which belong to a history that was rolled back.
void drop_checkpoints(const std::string& root, int64_t after);

// The newest complete checkpoint under root whose manifest and file hashes are good; those refused
// are reported to `warn`, one line each with the reason. Empty folder: nullptr.
std::unique_ptr<CheckpointInfo> find_latest(const std::string& root,
                                            const std::function<void(const std::string&)>& warn);
// A checkpoint named by the user: its folder, or a checkpoints/ or run folder (its newest good
// one). Throws NoInputError, CheckpointError with the reason.
CheckpointInfo open_checkpoint(const std::string& path);
// Complete verification (sizes and hashes of all files, table consistency); throws CheckpointError.
CheckpointInfo verify_checkpoint(const std::string& folder);
// A checkpoint that another process has just verified: manifest and sizes are checked, nothing is
// hashed. Throws CheckpointError.
CheckpointInfo reopen_checkpoint(const std::string& folder);

struct TensorEntry {
  std::string name;
  ElementType type;
  std::vector<int64_t> global_shape;
};
std::vector<TensorEntry> list_tensors(const CheckpointInfo& checkpoint);

// Fills the slices. Every stored element of every wanted tensor must exist exactly once (else
// CheckpointError naming the tensor); shapes and types must agree. Reads only what overlaps.
void load_slices(const CheckpointInfo& checkpoint, std::vector<TensorSlice>& slices);

}  // namespace maniple

// What a run stores, and from what it may go on (docs/formats.md).
#pragma once

#include <atomic>
#include <exception>
#include <thread>

#include "data/row_source.h"
#include "trainer/run_state.h"

namespace maniple {

// Checkpoints in the background: the state is copied at the step boundary, written by a thread.
class CheckpointWriter {
 public:
  CheckpointWriter() = default;
  ~CheckpointWriter() {
    if (thread_.joinable()) thread_.join();
  }
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Copies what this rank owns and, on one rank of the job, the router's state; then `write` runs in
  // the background. Returns the stall in seconds. Throws what the one before threw.
  double start(TrainedModel& model, bool with_router,
               std::function<void(const std::vector<TensorSlice>&)> write);
  bool done() const { return done_; }      // nothing is being written
  bool failed() const { return failed_; }  // finish() will throw
  // Waits for the checkpoint under way; throws what its writing threw.
  void finish();

 private:
  std::vector<at::Tensor> copies_;
  std::thread thread_;
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false}, done_{true};
};

// What the manifest says beside the tensors.
nlohmann::json checkpoint_meta(const Config& config, int64_t step, int64_t applied_steps,
                               const RowSource& rows);
// A resume may change anything but what the state means: the model, the data and the rows per step.
// Returns what changed. Throws ConfigError, DataError.
std::vector<std::string> check_resume(Config now, const CheckpointInfo& checkpoint,
                                      uint64_t data_fingerprint);
// The checkpoint to go on from, verified; empty: start anew. Throws CheckpointError when all were
// refused; `say` hears of each that was.
std::string resume_folder(const Config& config, const std::function<void(const std::string&)>& say);

}  // namespace maniple

// A trained or imported model as the teacher of another: forward passes only, on any mesh.
#pragma once

#include "objectives/distillation.h"
#include "trainer/run_state.h"

namespace maniple {

class TeacherModel : public Teacher {
 public:
  // path: Hugging Face folder, checkpoint, checkpoints/ or run folder. `config`: the run's, for
  // precision and batch. Throws AgreedError. Collective over the world.
  TeacherModel(const Config& config, const std::string& path, ProcessMesh& mesh);

  at::Tensor hidden(const MicroBatch& batch) override;
  const Parameter& head() override { return trained_->decoder->head(); }

  const ModelConfig& model() const { return trained_->model; }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;  // the hub folder or the checkpoint that was found
  Config config_;       // of the teacher
  std::unique_ptr<TrainedModel> trained_;
};

// A hash of everything that makes the teacher at `folder` (TeacherModel::folder) what it is.
std::string teacher_hash(const std::string& folder);

}  // namespace maniple

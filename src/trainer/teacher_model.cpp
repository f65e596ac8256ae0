#include "trainer/teacher_model.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/disk.h"
#include "core/config_schema.h"
#include "core/files.h"
#include "trainer/agreement.h"

namespace maniple {
namespace {

ModelSection model_section(const std::string& path, const CheckpointInfo* checkpoint) {
  if (checkpoint)
    return parse_config(checkpoint->meta.at("config").get<std::string>(), checkpoint->folder).model;
  ModelSection section;
  section.hf_config = path + "/config.json";
  return section;
}

}  // namespace

TeacherModel::TeacherModel(const Config& config, const std::string& path, ProcessMesh& mesh)
    : config_(config) {
  folder_ = agree_on_text(
      mesh.world(), [&] { return is_hub_folder(path) ? path : open_checkpoint(path).folder; });
  agree(mesh.world(), [&] {
    const bool hub = is_hub_folder(folder_);
    CheckpointInfo checkpoint;
    if (!hub) checkpoint = reopen_checkpoint(folder_);
    config_.model = model_section(folder_, hub ? nullptr : &checkpoint);
    trained_ = std::make_unique<TrainedModel>(config_, resolve_model(config_.model), mesh);
    for (MoeLayer* layer : trained_->moe_layers) layer->router().training = false;
    if (hub)
      load_hub_weights(*trained_, folder_);
    else
      load_checkpoint(*trained_, checkpoint, false);
  });
  trained_->optimizer->publish();
  trained_->optimizer.reset();
}

at::Tensor TeacherModel::hidden(const MicroBatch& batch) {
  at::NoGradGuard no_grad;
  const at::Tensor h = trained_->decoder->forward(batch.ids, batch.position, batch.document);
  trained_->decoder->take_losses();
  return h.view({-1, h.size(-1)});
}

std::string teacher_hash(const std::string& folder) {
  if (!is_hub_folder(folder)) return disk::hash_text(read_file(folder + "/manifest.json", "manifest"));
  std::vector<std::string> files = {folder + "/config.json"};
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const std::string& file : files) all += disk::hash_file(file).xxh3;
  return disk::hash_text(all);
}

}  // namespace maniple

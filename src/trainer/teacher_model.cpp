#include "trainer/teacher_model.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/disk.h"
#include "core/config_schema.h"
#include "core/files.h"
#include "interop/hub_model.h"
#include "trainer/agreement.h"
#include "trainer/model_source.h"

namespace maniple {

TeacherModel::TeacherModel(const Config& config, const std::string& path, ProcessMesh& mesh)
    : config_(config) {
  folder_ = agree_on_text(
      mesh.world(), [&] { return is_hub_model(path) ? path : open_checkpoint(path).folder; });
  agree(mesh.world(), [&] {
    HubModel hub;
    CheckpointInfo checkpoint;
    ModelConfig model;
    config_.quant = {};  // a student on a grid learns from a teacher that is on none
    if (is_hub_model(folder_)) {
      hub = open_hub_model(folder_);
      model = parse_model_config(hub.config);
    } else {
      checkpoint = reopen_checkpoint(folder_);
      const Config its = parse_config(checkpoint.meta.at("config").get<std::string>(), folder_);
      config_.quant = its.quant;
      model = parse_model_config(nlohmann::json(checkpoint_model_json(checkpoint, its.model)));
    }
    trained_ = std::make_unique<TrainedModel>(config_, model, mesh);
    for (MoeLayer* layer : trained_->moe_layers) layer->router().training = false;
    if (hub.tensors)
      load_hub_weights(*trained_, *hub.tensors);
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
  if (!is_hub_model(folder)) return disk::hash_text(read_file(folder + "/manifest.json", "manifest"));
  if (!std::filesystem::is_directory(folder)) return disk::hash_file(folder).xxh3;  // GGUF
  std::vector<std::string> files = {folder + "/config.json"};
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const std::string& file : files) all += disk::hash_file(file).xxh3;
  return disk::hash_text(all);
}

}  // namespace maniple

// Opening a model for another purpose than training, whatever holds it.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "core/config.h"
#include "interop/hub_tensors.h"
#include "model/model_config.h"
#include "quant/grid.h"

namespace maniple {

// The `hub/` folder of the run that a checkpoint belongs to; "" if it has none.
std::string hub_folder_of(const CheckpointInfo& checkpoint);
// config.json of a checkpoint's model: that of the imported model, else of the preset, with the
// overrides of `section`; fields in their order.
nlohmann::ordered_json checkpoint_model_json(const CheckpointInfo& checkpoint,
                                             const ModelSection& section);

// A model as an exporter sees it.
struct ModelSource {
  ModelConfig model;
  nlohmann::ordered_json config;  // config.json
  std::string config_text;        // its bytes, where nothing changed; else empty
  std::unique_ptr<HubTensors>
      weights;                  // in the types of their file; of a trained grid in model_type
  std::string format = "none";  // the grid that the model was trained on
  std::optional<Grid> grid;     // that grid
  at::ScalarType model_type = at::ScalarType::Float;  // F32, BF16 or F16
  std::string companions;                      // folder with tokenizer and the like, or empty
  std::map<std::string, std::string> headers;  // of the imported files, where the layout is kept
  std::string index_path;                      // of the imported shards, or empty
  bool wide = false;                           // the checkpoint is in fp64
  bool byte_tokens = false;                    // ids 0 to 255 are bytes, 256 ends a document
};
// path: as in ExportRequest. Throws NoInputError, DataError, CheckpointError, ConfigError.
ModelSource open_model_source(const std::string& path);

}  // namespace maniple

// Models in GGUF files (spec/model.md 4.6): which tensors and metadata llama.cpp's architectures
// have for a model, in both directions. Architectures: qwen3moe, qwen2moe, llama (Mixtral), gemma3.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "interop/gguf_file.h"
#include "interop/hub_tensors.h"
#include "model/model_config.h"

namespace maniple {

// One tensor of the file and the hub tensors that it holds, one after the other along dim 0.
struct GgufPart {
  std::string name;
  std::vector<int64_t> shape;
  std::string parameter;         // Maniple's name, whose grid it shares
  std::vector<std::string> hub;  // experts in order, else one
  enum Change {
    kNone,
    kPlusOne,  // Gemma's norms are stored as 1 + w
    kPermute,  // llama's q and k rows: [heads, 2, d/2] with the middle axes swapped
  } change = kNone;
  int64_t heads = 0;   // of kPermute
  bool matrix = true;  // else always F32: norms, biases, routers
};

// In the order of the forward pass. Throws ConfigError where GGUF cannot say what the model is (the
// house preset, dense layers among experts, other rules of attention or weights): one line with the
// reason.
std::vector<GgufPart> gguf_parts(const ModelConfig& model);

// A hub tensor as the file has it, and back. Exact: reading gives what computes the same.
at::Tensor to_gguf(const GgufPart& part, const at::Tensor& hub);
at::Tensor from_gguf(const GgufPart& part, const at::Tensor& stored,
                     const std::vector<int64_t>& hub_shape);

// Its name of a family. Throws ConfigError where it has none.
std::string gguf_architecture(const ModelConfig& model);
// Gemma 3: every sixth layer is full; readers know no other order.
inline constexpr int64_t kGgufGemmaPattern = 6;

// What a runtime needs to know of the model, without file type and tokenizer. `name`: general.name.
GgufMetadata gguf_metadata(const ModelConfig& model, const std::string& name);
// The config.json (4.x fields) that the metadata of a file describe. Throws DataError.
nlohmann::json gguf_config(const GgufFile& file);

// A GGUF file under hub names. Throws as GgufFile and gguf_config, and DataError for a tensor that
// is missing or has another shape than the metadata say.
class GgufTensors : public HubTensors {
 public:
  explicit GgufTensors(const std::string& path);
  const nlohmann::json& config() const { return config_; }

  bool has(const std::string& name) const override { return places_.count(name) > 0; }
  std::vector<std::string> names() const override;
  const SafetensorsEntry& entry(const std::string& name) const override;
  at::Tensor read(const std::string& name) const override;
  const std::string& path() const override { return file_.path(); }

 private:
  struct Place {
    GgufPart part;
    int64_t index;  // among the part's hub tensors
    SafetensorsEntry entry;
  };
  const Place& place(const std::string& name) const;

  GgufFile file_;
  nlohmann::json config_;
  std::map<std::string, Place> places_;
};

}  // namespace maniple

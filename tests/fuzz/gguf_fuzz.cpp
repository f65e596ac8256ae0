// GGUF files: metadata, tensors, the model that they describe. All tensors of an accepted file are
// read.
#include <ATen/ops/ones.h>

#include "core/files.h"
#include "fuzz.h"
#include "interop/gguf_blocks.h"
#include "interop/gguf_model.h"
#include "scratch_file.h"

namespace maniple {
namespace {

std::string model_file() {
  static const ScratchFolder folder;
  nlohmann::json config = preset_config("qwen3_moe");
  config.update({{"vocab_size", 4},
                 {"hidden_size", 8},
                 {"num_hidden_layers", 1},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"head_dim", 4},
                 {"num_experts", 2},
                 {"num_experts_per_tok", 1},
                 {"moe_intermediate_size", 4}});
  const ModelConfig model = parse_model_config(config);
  std::vector<GgufTensor> tensors;
  for (const GgufPart& part : gguf_parts(model))
    tensors.push_back({part.name, part.shape, GgufType::kF32});
  const std::string path = folder.put("seed.gguf", "");
  GgufWriter writer(path, gguf_metadata(model, "x"), tensors);
  for (const GgufTensor& t : tensors)
    writer.write(t.name, 0, gguf_encode(GgufType::kF32, at::ones(t.shape)));
  writer.finish();
  return read_file(path);
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  return {model_file()};
}

std::vector<std::string> fuzz_dictionary() {
  return {"qwen2moe",
          "llama",
          "gemma3",
          std::string("\2\0\0\0", 4),
          std::string("\x09\0\0\0", 4),
          std::string(8, '\xff'),
          "general.alignment",
          "blk.0.",
          "rope.scaling.type"};
}

void fuzz_one(const std::string& input) {
  static const ScratchFolder folder;
  const std::string path = folder.put("x.gguf", input);
  const GgufFile file(path);
  for (const auto& [name, tensor] : file.tensors())
    if (tensor.elements() < (1 << 20)) file.read(name, 0, tensor.elements());
  const GgufTensors model(path);
  for (const std::string& name : model.names()) model.read(name);
}

}  // namespace maniple

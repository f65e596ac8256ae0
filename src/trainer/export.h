// Models for other programs: `maniple import` and `maniple export` (docs/quantisation.md).
#pragma once

#include <string>

namespace maniple {

struct ExportRequest {
  std::string model;   // run folder, checkpoint, Hugging Face folder or GGUF file
  std::string format;  // hf | gguf | compressed-tensors
  std::string
      quant;  // "": the checkpoint's grid; q4_0, q8_0, bf16, f16, int4_g32, int4_g128, int4_channel
  std::string out;          // gguf: a file; else a new folder
  bool requantize = false;  // another grid than the one that was trained
  std::string fake_quant_out =
      "";               // "", or a safetensors file: every tensor as the file dequantises, F32
  bool verify = false;  // reload what was written and compare tensors and logits
};

// Writes tensor by tensor; memory is bounded by the largest parameter of a layer (verification
// loads the model twice). Returns a description of what was written, one line a fact, warnings
// included. Throws ConfigError for what the format cannot say, DataError for bad weights and for a
// verification that fails, IoError.
std::string export_model(const ExportRequest& request);

// A Hugging Face folder (or GGUF file) as the checkpoint of step 0 of a new run folder `run_dir`,
// with everything that an export needs to give it back byte for byte. One parameter in memory at a
// time. Returns a description.
std::string import_model(const std::string& from, const std::string& run_dir);

}  // namespace maniple

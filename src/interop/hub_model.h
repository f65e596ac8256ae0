// A model as others hand it on: a Hugging Face folder (plain or compressed-tensors) or a GGUF file.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "interop/hub_tensors.h"

namespace maniple {

// A folder that holds config.json, or a file whose name ends in .gguf.
bool is_hub_model(const std::string& path);

struct HubModel {
  nlohmann::json config;  // contents of config.json, or what a GGUF file's metadata say
  std::unique_ptr<HubTensors> tensors;
};
// Throws NoInputError, IoError, DataError.
HubModel open_hub_model(const std::string& path);

// What belongs to a folder beside its weights and config.json: tokenizer, generation config and the
// like. File names, sorted; subfolders and weights in other formats are left out.
std::vector<std::string> companion_files(const std::string& folder);

// --- What an imported model brings along, kept in `hub/` of a run folder, so that an export can
// give it back: config.json, companion files, the index of sharded weights, and headers/<file> with
// the header of each file of weights.

// Copies it from `from`, a Hugging Face folder or another run's `hub/`. Throws IoError.
void keep_hub_files(const std::string& from, const std::string& to);
// The headers in a `hub/` folder, by file name; empty if there are none.
std::map<std::string, std::string> kept_headers(const std::string& hub);

}  // namespace maniple

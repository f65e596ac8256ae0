#include "interop/hub_model.h"

#include <algorithm>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"
#include "interop/compressed_tensors.h"
#include "interop/gguf_model.h"
#include "interop/json_file.h"
#include "interop/safetensors.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kQuantization = "quantization_config";

bool is_weights(const std::string& name) {
  for (const char* tail : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack",
                           ".onnx", ".safetensors.index.json", ".bin.index.json"})
    if (name.ends_with(tail)) return true;
  return false;
}

void copy_file(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
  if (error) throw IoError(fmt::format("copying {} to {}: {}", from, to, error.message()));
}

}  // namespace

bool is_hub_model(const std::string& path) {
  return path.ends_with(".gguf") || fs::exists(fs::path(path) / "config.json");
}

HubModel open_hub_model(const std::string& path) {
  if (path.ends_with(".gguf")) {
    auto file = std::make_unique<GgufTensors>(path);
    nlohmann::json config = file->config();
    return {std::move(config), std::move(file)};
  }
  const std::string config_path = path + "/config.json";
  HubModel model;
  model.config = read_json_object(config_path, "model config");
  model.tensors = std::make_unique<SafetensorsFolder>(path);
  if (model.config.contains(kQuantization) && !model.config[kQuantization].is_null()) {
    check_quantization_config(model.config[kQuantization], config_path);
    model.tensors = std::make_unique<CompressedFolder>(std::move(model.tensors));
  }
  model.config.erase(kQuantization);  // what is read is not quantised any more
  return model;
}

std::vector<std::string> companion_files(const std::string& folder) {
  std::vector<std::string> names;
  if (!fs::is_directory(folder)) return names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (entry.is_regular_file() && name != "config.json" && name[0] != '.' && !is_weights(name))
      names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void keep_hub_files(const std::string& from, const std::string& to) {
  ensure_directory(to + "/headers");
  std::vector<std::string> names = companion_files(from);
  const std::string config_path = from + "/config.json";
  if (fs::exists(config_path)) {
    auto config = nlohmann::ordered_json::parse(read_file(config_path), nullptr, false);
    if (config.is_object() && config.erase(kQuantization)) {  // the layout of the files is not kept
      for (const std::string& name : names) copy_file(from + "/" + name, to + "/" + name);
      write_file_atomic(to + "/config.json", config.dump(2) + "\n");
      return;
    }
  }
  names.insert(names.end(), {"config.json", kIndex});
  for (const std::string& name : names)
    if (fs::exists(from + "/" + name)) copy_file(from + "/" + name, to + "/" + name);
  if (fs::is_directory(from + "/headers")) {
    for (const auto& [name, header] : kept_headers(from))
      write_file_atomic(to + "/headers/" + name, header);
  } else {
    for (const auto& [name, header] : SafetensorsFolder(from).headers())
      write_file_atomic(to + "/headers/" + name, header);
  }
}

std::map<std::string, std::string> kept_headers(const std::string& hub) {
  std::map<std::string, std::string> headers;
  if (!fs::is_directory(hub + "/headers")) return headers;
  for (const auto& entry : fs::directory_iterator(hub + "/headers"))
    headers[entry.path().filename()] = read_file(entry.path(), "header of the imported weights");
  return headers;
}

}  // namespace maniple

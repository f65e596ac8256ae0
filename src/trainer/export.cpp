#include "trainer/export.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>

#include "core/errors.h"
#include "core/files.h"
#include "interop/compressed_tensors.h"
#include "interop/gguf_blocks.h"
#include "interop/gguf_model.h"
#include "interop/gguf_tokenizer.h"
#include "interop/hf_names.h"
#include "interop/hub_model.h"
#include "interop/safetensors.h"
#include "trainer/export_plan.h"
#include "trainer/inference.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kShardBytes = 5'000'000'000;
constexpr const char *kHead = "lm_head.weight", *kEmbedding = "model.embed_tokens.weight";

void copy_companions(const std::string& from, const std::string& to) {
  for (const std::string& name : companion_files(from))
    write_file_atomic(to + "/" + name, read_file(from + "/" + name));
}

// The class that transformers loads a family with.
const char* architecture(const std::string& model_type) {
  if (model_type == "qwen3_moe") return "Qwen3MoeForCausalLM";
  if (model_type == "qwen2_moe") return "Qwen2MoeForCausalLM";
  if (model_type == "mixtral") return "MixtralForCausalLM";
  return "Gemma3ForCausalLM";
}

// config.json for weights that are not those of the imported files.
ordered_json config_for(const ModelSource& source, at::ScalarType type) {
  ordered_json config = source.config;
  if (!config.contains("architectures"))
    config["architectures"] = {architecture(source.model.model_type)};
  const char* name = type == at::kBFloat16 ? "bfloat16" : type == at::kHalf ? "float16" : "float32";
  config[config.contains("dtype") && !config.contains("torch_dtype") ? "dtype" : "torch_dtype"] =
      name;
  if (source.byte_tokens)
    for (const char* id : {"bos_token_id", "eos_token_id"})
      if (!config.contains(id)) config[id] = 256;
  return config;
}

// --- Hugging Face folders

int64_t bytes_of(const SafetensorsEntry& entry) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(entry.dtype));
  for (const int64_t extent : entry.shape) bytes *= extent;
  return bytes;
}

// Writes the entries (in groups that stay together) into one file, or into shards with an index.
// `write` is called for each group with the writer that declares its entries.
using Group = std::vector<SafetensorsEntry>;
void write_shards(const std::string& folder, const std::vector<Group>& groups,
                  const std::function<void(size_t, SafetensorsWriter&)>& write) {
  std::vector<std::vector<size_t>> shards(1);
  int64_t total = 0, filled = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    int64_t bytes = 0;
    for (const SafetensorsEntry& entry : groups[g]) bytes += bytes_of(entry);
    if (filled > 0 && filled + bytes > kShardBytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(g);
    filled += bytes;
    total += bytes;
  }
  ordered_json map = ordered_json::object();
  std::map<std::string, std::string> sorted;
  for (size_t s = 0; s < shards.size(); ++s) {
    const std::string name =
        shards.size() == 1 ? "model.safetensors"
                           : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    std::vector<SafetensorsEntry> entries;
    for (const size_t g : shards[s])
      for (const SafetensorsEntry& entry : groups[g]) {
        entries.push_back(entry);
        sorted[entry.name] = name;
      }
    SafetensorsWriter writer(folder + "/" + name, entries);
    for (const size_t g : shards[s]) write(g, writer);
    writer.finish();
  }
  if (shards.size() == 1) return;
  for (const auto& [name, file] : sorted) map[name] = file;
  const ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_file_atomic(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

// The imported files once more, with today's values in their places.
void write_in_kept_layout(const ModelSource& source, const std::string& folder) {
  for (const auto& [file, header] : source.headers) {
    SafetensorsWriter writer(folder + "/" + file, header);
    for (const SafetensorsEntry& entry : writer.entries()) {
      const bool tied_copy = entry.name == kHead && !source.weights->has(kHead);
      writer.write(entry.name,
                   source.weights->read(tied_copy ? kEmbedding : entry.name).to(entry.dtype));
    }
    writer.finish();
  }
  if (!source.index_path.empty())
    write_file_atomic(folder + "/model.safetensors.index.json", read_file(source.index_path));
}

bool layout_fits(const ModelSource& source) {
  if (source.headers.empty()) return false;
  for (const auto& [file, header] : source.headers)
    for (const SafetensorsEntry& entry : parse_safetensors_header(file, header)) {
      const bool tied_copy = entry.name == kHead && source.model.tied_head;
      if (!tied_copy && !source.weights->has(entry.name)) return false;
      if (!tied_copy && source.weights->entry(entry.name).shape != entry.shape) return false;
    }
  return true;
}

void write_hf(const ModelSource& source, const ExportPlan& plan, const std::string& folder) {
  ensure_directory(folder);
  const bool keep = plan.quant.empty() && layout_fits(source);
  at::ScalarType type = at::kFloat;
  if (keep) {
    write_in_kept_layout(source, folder);
  } else {
    std::vector<Group> groups;
    for (const ExportTensor& t : plan.tensors)
      groups.push_back({{t.name, scalar_type(t.type), t.shape}});
    type = scalar_type(plan.find(kEmbedding).type);
    write_shards(folder, groups, [&](size_t g, SafetensorsWriter& writer) {
      const ExportTensor& t = plan.tensors[g];
      writer.write(t.name,
                   as_exported(plan, t, source.weights->read(t.name)).to(scalar_type(t.type)));
    });
  }
  copy_companions(source.companions, folder);
  const bool unchanged = keep && !source.config_text.empty();
  write_file_atomic(folder + "/config.json",
                    unchanged ? source.config_text
                              : config_for(source, keep ? source.model_type : type).dump(2) + "\n");
}

// --- compressed-tensors

std::string module_of(const std::string& weight) { return weight.substr(0, weight.rfind('.')); }

void write_compressed(const ModelSource& source, const ExportPlan& plan,
                      const std::string& folder) {
  ensure_directory(folder);
  std::vector<Group> groups;
  std::vector<std::string> ignored = {"lm_head", "re:.*\\.gate$", "re:.*shared_expert_gate$"};
  for (const ExportTensor& t : plan.tensors) {
    if (!t.packed) {
      groups.push_back({{t.name, scalar_type(t.type), t.shape}});
      if (plan.grid && !t.on_grid && t.name.ends_with("_proj.weight"))
        ignored.push_back(module_of(t.name));
      continue;
    }
    const int64_t groups_of_row = t.shape[1] / plan.grid->group_of(t.shape[1]);
    groups.push_back({{t.name + "_packed", at::kInt, {t.shape[0], (t.shape[1] + 7) / 8}},
                      {t.name + "_scale", plan.grid->model_type, {t.shape[0], groups_of_row}},
                      {t.name + "_shape", at::kLong, {2}}});
  }
  write_shards(folder, groups, [&](size_t g, SafetensorsWriter& writer) {
    const ExportTensor& t = plan.tensors[g];
    const at::Tensor w = source.weights->read(t.name);
    if (!t.packed) return writer.write(t.name, w.to(scalar_type(t.type)));
    const PackedWeight parts = pack_weight(*plan.grid, w);
    writer.write(t.name + "_packed", parts.packed);
    writer.write(t.name + "_scale", parts.scale);
    writer.write(t.name + "_shape", parts.shape);
  });
  copy_companions(source.companions, folder);
  ordered_json config = config_for(source, plan.grid->model_type);
  config["quantization_config"] = quantization_config(*plan.grid, ignored);
  write_file_atomic(folder + "/config.json", config.dump(2) + "\n");
}

// --- GGUF

// general.file_type: of the commonest type among the matrices.
uint32_t file_type(const std::vector<GgufTensor>& tensors, const std::vector<GgufPart>& parts) {
  std::map<GgufType, int64_t> count;
  for (size_t i = 0; i < tensors.size(); ++i)
    if (parts[i].matrix) ++count[tensors[i].type];
  GgufType most = GgufType::kF32;
  for (const auto& [type, n] : count)
    if (n > count[most]) most = type;
  switch (most) {
    case GgufType::kF16:
      return 1;
    case GgufType::kQ4_0:
      return 2;
    case GgufType::kQ8_0:
      return 7;
    case GgufType::kBF16:
      return 32;
    default:
      return 0;
  }
}

void write_gguf(const ModelSource& source, ExportPlan& plan, const std::string& path,
                const std::string& name) {
  const std::vector<GgufPart> parts = gguf_parts(source.model);
  std::vector<GgufTensor> tensors;
  for (const GgufPart& part : parts)
    tensors.push_back({part.name, part.shape, plan.find(part.hub.front()).type});
  GgufMetadata metadata = gguf_metadata(source.model, name);
  metadata.emplace_back("general.file_type", file_type(tensors, parts));
  metadata.emplace_back("general.quantization_version", uint32_t{2});
  std::string warning;
  GgufMetadata tokenizer = folder_tokenizer(source.companions, source.model.vocab_size, &warning);
  if (tokenizer.empty() && source.byte_tokens && source.model.vocab_size >= 257) {
    tokenizer = byte_tokenizer(source.model.vocab_size);
    warning.clear();
  }
  if (!warning.empty()) plan.notes.push_back("warning: " + warning);
  metadata.insert(metadata.end(), tokenizer.begin(), tokenizer.end());

  GgufWriter writer(path, metadata, tensors);
  for (size_t i = 0; i < parts.size(); ++i) {
    int64_t first = 0;
    for (const std::string& hub : parts[i].hub) {
      const at::Tensor w = to_gguf(parts[i], source.weights->read(hub));
      writer.write(parts[i].name, first, gguf_encode(tensors[i].type, w));
      first += w.numel();
    }
  }
  writer.finish();
}

// --- afterwards

// What the file gives for a tensor; norms that are stored as 1 + w come back rounded by that.
at::Tensor expected(const ModelSource& source, const ExportPlan& plan, const ExportRequest& request,
                    const ExportTensor& t) {
  const at::Tensor w = source.weights->read(t.name);
  const bool plus_one =
      request.format == "gguf" && source.model.norm_plus_one && t.name.ends_with("norm.weight");
  return plus_one ? (w.to(at::kFloat) + 1) - 1 : as_exported(plan, t, w);
}

// Compares every tensor of what was written, and the logits of both models. Returns a note.
std::string verify(const ModelSource& source, const ExportPlan& plan,
                   const ExportRequest& request) {
  const HubModel written = open_hub_model(request.out);
  for (const ExportTensor& t : plan.tensors) {
    const at::Tensor got = written.tensors->read(t.name).to(at::kFloat);
    const at::Tensor want = expected(source, plan, request, t);
    if (!at::equal(got, want))
      throw DataError(
          fmt::format("verifying {}: the tensor {} differs from the model by up to {}; the file "
                      "must not be used",
                      request.out, t.name, (got - want).abs().max().item<double>()));
  }
  const char* precision = source.wide ? "fp64" : "fp32";
  InferenceModel model(request.model, precision, "cpu", plan.grid);
  InferenceModel reloaded(request.out, precision, "cpu");
  const int64_t length = std::min<int64_t>(32, model.context());
  const at::Tensor t = at::arange(2 * length, at::TensorOptions(at::kLong));
  const at::Tensor ids =
      (t * t * 7 + t * 5 + 3).remainder(source.model.vocab_size).view({2, length});
  const double worst = (model.logits(ids) - reloaded.logits(ids)).abs().max().item<double>();
  const bool exact = !source.wide && (plan.grid || plan.quant.empty());
  if (exact && worst != 0)
    throw DataError(fmt::format(
        "verifying {}: its logits differ from the model's by up to {}; the file must not be used",
        request.out, worst));
  return fmt::format(
      "verified: {} tensors equal, logits {}", plan.tensors.size(),
      worst == 0 ? "equal" : fmt::format("within {:.3g} of the unquantised model's", worst));
}

void write_fake_quantized(const ExportRequest& request) {
  const HubModel written = open_hub_model(request.out);
  std::vector<SafetensorsEntry> entries;
  for (const std::string& name : written.tensors->names())
    entries.push_back({name, at::kFloat, written.tensors->entry(name).shape});
  SafetensorsWriter writer(request.fake_quant_out, entries);
  for (const SafetensorsEntry& entry : entries)
    writer.write(entry.name, written.tensors->read(entry.name).to(at::kFloat));
  writer.finish();
}

void check_output(const ExportRequest& request) {
  std::error_code error;
  if (request.format == "gguf") {
    if (!request.out.ends_with(".gguf"))
      throw UsageError(
          fmt::format("cannot export to --out {}: a GGUF file is called *.gguf", request.out));
    if (fs::is_directory(request.out))
      throw IoError(
          fmt::format("cannot export to --out {}: it is a folder; name a file", request.out));
  } else if (fs::exists(request.out) &&
             (!fs::is_directory(request.out) || !fs::is_empty(request.out, error))) {
    throw IoError(
        fmt::format("cannot export to --out {}: it exists; name a new folder", request.out));
  }
}

}  // namespace

std::string export_model(const ExportRequest& request) {
  check_output(request);
  const ModelSource source = open_model_source(request.model);
  ExportPlan plan = plan_export(source, request);
  if (request.format == "hf") {
    write_hf(source, plan, request.out);
  } else if (request.format == "gguf") {
    write_gguf(source, plan, request.out, fs::path(request.out).stem());
  } else {
    write_compressed(source, plan, request.out);
  }
  if (request.model.ends_with(".gguf"))
    plan.notes.push_back("warning: the tokenizer of a GGUF file is not carried over");
  int64_t quantized = 0;
  for (const ExportTensor& t : plan.tensors) quantized += t.on_grid || t.type == GgufType::kQ8_0;
  std::string text = fmt::format(
      "{}: {} with {} tensors, {} of them {}\n", request.out, request.format, plan.tensors.size(),
      quantized, quantized ? "on the grid " + plan.quant : std::string("quantised"));
  for (const std::string& note : plan.notes) text += note + "\n";
  if (!request.fake_quant_out.empty()) write_fake_quantized(request);
  if (request.verify) text += verify(source, plan, request) + "\n";
  return text;
}

}  // namespace maniple

#include "trainer/checkpoint_writer.h"

#include <fmt/ranges.h>
#include <torch/version.h>

#include <chrono>

#include "core/config_schema.h"
#include "core/errors.h"
#include "core/seconds_since.h"

namespace maniple {
namespace {

// tp ranks hold equal copies of these.
bool is_replicated(TrainedModel& model, const std::string& name) {
  const std::string parameter = name.substr(name.find('/') + 1);
  for (const Parameter& p : model.store.parameters())
    if (p.name == parameter) return p.group == GradGroup::kReplicated;
  return false;
}

}  // namespace

double CheckpointWriter::start(TrainedModel& model, bool with_router,
                               std::function<void(const std::vector<TensorSlice>&)> write) {
  const auto begin = std::chrono::steady_clock::now();
  finish();
  const ProcessMesh& mesh = model.store.mesh();
  std::vector<TensorSlice> slices =
      state_slices(model, ShardedAdamw::Blocks::kOwned, with_router, true);
  std::erase_if(slices, [&](const TensorSlice& s) {
    return mesh.tp_index() != 0 && is_replicated(model, s.name);
  });
  copies_.resize(slices.size());
  for (size_t i = 0; i < slices.size(); ++i) {
    const at::Tensor bytes = bytes_of(slices[i], mesh.device());
    at::Tensor& copy = copies_[i];
    // Memory of the last checkpoint is taken again: new pages would cost as much as the copy.
    if (!copy.defined() || copy.numel() != bytes.numel())
      copy = at::empty(bytes.sizes(), at::TensorOptions(at::kByte));
    copy.copy_(bytes);
    slices[i].data = copy.data_ptr();
  }
  done_ = false;
  thread_ = std::thread([this, write = std::move(write), slices = std::move(slices)] {
    try {
      write(slices);
    } catch (...) {
      failure_ = std::current_exception();
      failed_ = true;
    }
    done_ = true;
  });
  return seconds_since(begin);
}

void CheckpointWriter::finish() {
  if (thread_.joinable()) thread_.join();
  failed_ = false;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

nlohmann::json checkpoint_meta(const Config& config, int64_t step, int64_t applied_steps,
                               const RowSource& rows) {
  return {{"config", config_to_yaml(config)},
          {"step", step},
          {"applied_steps", applied_steps},
          {"next_row", step * config.batch.rows},
          {"data_fingerprint", rows.fingerprint()},
          {"torch", TORCH_VERSION}};
}

std::vector<std::string> check_resume(Config now, const CheckpointInfo& checkpoint,
                                      uint64_t data_fingerprint) {
  Config before = parse_config(checkpoint.meta.at("config").get<std::string>(),
                               checkpoint.folder + "/config");
  for (Config* config : {&before, &now})  // compared below, named or not
    for (SourceConfig& source : config->data.sources) source.hash.clear();
  std::vector<std::string> changes;
  for (const std::string& line : config_difference(before, now)) {
    const std::string key = line.substr(0, line.find(':'));
    const bool fixed = (key.starts_with("model.") && key != "model.init_from") ||
                       key.starts_with("data.") || key == "batch.rows" || key == "batch.seq_len" ||
                       key == "run.seed";
    if (fixed)
      throw ConfigError(fmt::format(
          "cannot resume {}: {}; the model, the data and the rows of a run are fixed; restore the "
          "value, or start anew with run.resume=never in another run.dir",
          checkpoint.folder, line));
    if (key != "run.dir" && key != "run.resume") changes.push_back(line);
  }
  if (checkpoint.meta.at("data_fingerprint").get<uint64_t>() != data_fingerprint)
    throw DataError(fmt::format(
        "cannot resume {}: the contents of data.sources changed since; restore them, or start anew "
        "with run.resume=never in another run.dir",
        checkpoint.folder));
  return changes;
}

std::string resume_folder(const Config& config,
                          const std::function<void(const std::string&)>& say) {
  if (config.run.resume == "never") return "";
  if (config.run.resume != "auto") return open_checkpoint(config.run.resume).folder;
  std::vector<std::string> refused;
  const auto found = find_latest(config.run.dir + "/checkpoints",
                                 [&](const std::string& reason) { refused.push_back(reason); });
  if (!found && !refused.empty())
    throw CheckpointError(fmt::format(
        "cannot resume {}: none of its checkpoints is good: {}; restore one of them, or start anew "
        "with run.resume=never",
        config.run.dir, fmt::join(refused, "; ")));
  for (const std::string& reason : refused) say(reason);
  return found ? found->folder : "";
}

}  // namespace maniple

#include "trainer/replay_step.h"

#include <ATen/Parallel.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "checkpoint/folders.h"
#include "core/config_schema.h"
#include "core/files.h"
#include "metrics/jsonl_sink.h"
#include "optim/schedule.h"
#include "parallel/tensor_hash.h"
#include "trainer/agreement.h"
#include "trainer/make_objective.h"
#include "trainer/run_state.h"

namespace maniple {
namespace {

constexpr const char* kLayers = "model.layers.";

// What one rank, or all of them, computed for a part of the model.
struct Part {
  double squares = 0, rms = 0;  // of the gradient; of the layer's input
  Fingerprint gradient, hidden;
};

// A layer's number, or the number of layers for what belongs to none.
int64_t layer_of(const std::string& name, int64_t num_layers) {
  int64_t layer = num_layers;
  if (name.starts_with(kLayers))
    std::from_chars(name.data() + std::strlen(kLayers), name.data() + name.size(), layer);
  return layer;
}

class Replay {
 public:
  Replay(const ReplayRequest& request, Config config, std::unique_ptr<Communicator> world);
  ExitCode run();

 private:
  void start();
  nlohmann::ordered_json unit(int64_t number);
  // Over the ranks: doubles in rank order, fingerprints combined.
  Part over_ranks(const Part& mine);
  bool compare(const StepOutcome& out, const std::string& fingerprint);
  void say(const std::string& text) const {
    if (mesh_->world().rank() == 0) fmt::print("{}\n", text), std::fflush(stdout);
  }

  const ReplayRequest& request_;
  Config config_;
  ModelConfig model_config_;
  std::unique_ptr<RowSource> rows_;
  std::unique_ptr<ProcessMesh> mesh_;
  std::unique_ptr<TrainedModel> model_;
  std::unique_ptr<TrainStep> step_;
};

Replay::Replay(const ReplayRequest& request, Config config, std::unique_ptr<Communicator> world)
    : request_(request), config_(std::move(config)) {
  config_.run.dir = request.run;
  // The units of a job of fixed slices fit these; an elastic one's do not know how many there are.
  const bool elastic = std::filesystem::exists(request.run + "/elastic");
  const int64_t slices = elastic ? 1 : config_.parallel.slices;
  config_.parallel.slices = 1;
  MeshShape shape;
  agree(*world, [&] {
    at::set_num_threads(static_cast<int>(config_.run.threads));
    model_config_ = resolve_model(config_.model);
    shape = make_mesh_shape(config_.parallel, world->size());
    MeshShape of_run = shape;
    of_run.slices = slices;
    const int64_t units = config_.batch.units = num_units(config_.batch, of_run);
    if (request.step < 1 || request.step > config_.train.steps)
      throw ConfigError(fmt::format("cannot replay step {} of {}: it has steps 1 to {}", request.step,
                                    request.run, config_.train.steps));
    if (request.unit && (*request.unit < 0 || *request.unit >= units))
      throw ConfigError(fmt::format("cannot replay unit {} of step {}: a step has units 0 to {}",
                                    *request.unit, request.step, units - 1));
    rows_ = open_row_source(config_.data, config_.batch.seq_len, model_config_.vocab_size,
                            config_.run.seed);
    rows_ = attach_targets(config_, model_config_, std::move(rows_));
  });
  mesh_ = std::make_unique<ProcessMesh>(shape, std::move(world));
  agree(mesh_->world(), [&] { model_ = std::make_unique<TrainedModel>(config_, model_config_, *mesh_); });
  step_ = std::make_unique<TrainStep>(config_, *model_, *mesh_, *rows_,
                                      make_objective(config_, model_config_, *mesh_));
}

// The state after the step before.
void Replay::start() {
  const std::string root = request_.run + "/checkpoints";
  const std::string folder = agree_on_text(mesh_->world(), [&]() -> std::string {
    std::vector<StepFolder> folders = list_step_folders(root);
    for (auto f = folders.rbegin(); f != folders.rend(); ++f) {
      if (f->kind != FolderKind::kCheckpoint || f->step >= request_.step) continue;
      try {
        return verify_checkpoint(root + "/" + f->name).folder;
      } catch (const Error& error) {
        say(fmt::format("warning: {}", error.what()));
      }
    }
    return "";
  });
  int64_t at_step = 0;
  agree(mesh_->world(), [&] {
    if (folder.empty()) return set_initial_weights(*model_, config_);
    const CheckpointInfo checkpoint = reopen_checkpoint(folder);
    load_checkpoint(*model_, checkpoint, true);
    at_step = checkpoint.step;
    step_->applied_steps = checkpoint.meta.at("applied_steps").get<int64_t>();
  });
  model_->optimizer->publish();
  say(fmt::format("from {}, {} steps to go before step {}",
                  folder.empty() ? "the first weights" : folder, request_.step - 1 - at_step,
                  request_.step));
  while (++at_step < request_.step)
    step_->run(at_step, learning_rate(config_.optim, at_step, config_.train.steps));
}

Part Replay::over_ranks(const Part& mine) {
  const at::Tensor numbers = at::tensor(std::vector<double>{mine.squares, mine.rms}, at::kDouble);
  const at::Tensor sums = mesh_->world().all_reduce_ordered(numbers);
  std::vector<int64_t> words;
  for (const Fingerprint& f : {mine.gradient, mine.hidden}) {
    words.push_back(static_cast<int64_t>(f.lo));
    words.push_back(static_cast<int64_t>(f.hi));
  }
  at::Tensor all = at::empty({mesh_->world().size(), 4}, at::TensorOptions(at::kLong));
  mesh_->world().all_gather(at::tensor(words, at::kLong), all);
  Part whole{sums[0].item<double>(), sums[1].item<double>() / mesh_->world().size(), {}, {}};
  const auto word = all.accessor<int64_t, 2>();
  for (int64_t r = 0; r < all.size(0); ++r) {
    const auto at = [&](int64_t i) { return mix64(static_cast<uint64_t>(word[r][i]) + static_cast<uint64_t>(r)); };
    whole.gradient.combine({at(0), at(1)});
    whole.hidden.combine({at(2), at(3)});
  }
  return whole;
}

nlohmann::ordered_json Replay::unit(int64_t number) {
  const int64_t layers = model_config_.num_layers();
  std::vector<Part> parts(layers + 1);
  int64_t passed = 0;
  model_->decoder->on_hidden = [&](const at::Tensor& x) {
    Part& part = parts[passed % (layers + 1)];
    part.hidden.combine(fingerprint_of(x, static_cast<uint64_t>(passed++)));
    part.rms = x.detach().to(at::kDouble).square().mean().sqrt().item<double>();
  };
  TrainStep::UnitResult result = step_->unit(request_.step, number, [&] {
    uint64_t key = 0;
    for (int g = 0; g < kNumGradGroups; ++g)
      for (const Parameter* p : model_->store.group(static_cast<GradGroup>(g)).members) {
        Part& part = parts[layer_of(p->name, layers)];
        part.gradient.combine(fingerprint_of(p->grad, ++key));
        part.squares += p->grad.to(at::kDouble).square().sum().item<double>();
      }
  });
  model_->decoder->on_hidden = {};
  mesh_->in_slice().all_reduce(result.sums);
  const auto targets = result.sums[0].item<int64_t>();
  nlohmann::ordered_json json = {{"step", request_.step}, {"unit", number}, {"targets", targets},
                                 {"loss", step_->loss_of(result)}};
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  Part whole;
  for (int64_t layer = 0; layer <= layers; ++layer) {
    const Part part = over_ranks(parts[layer]);
    whole.squares += part.squares;
    whole.gradient.combine(part.gradient);
    whole.hidden.combine(part.hidden);
    list.push_back({{"layer", layer < layers ? std::to_string(layer) : "embedding, norm, head"},
                    {"input_rms", part.rms},
                    {"input_fingerprint", part.hidden.hex()},
                    {"grad_norm", std::sqrt(part.squares)},
                    {"grad_fingerprint", part.gradient.hex()}});
  }
  json["grad_norm"] = std::sqrt(whole.squares);
  json["fingerprint"] = whole.gradient.hex();
  json["layers"] = list;
  return json;
}

// With the row of the run, where it has one.
bool Replay::compare(const StepOutcome& out, const std::string& fingerprint) {
  std::optional<nlohmann::json> row;
  const std::string metrics = request_.run + "/metrics.jsonl";
  if (std::filesystem::exists(metrics)) {
    std::istringstream lines(read_file(metrics, "metrics"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line, nullptr, false);
      if (json.is_object() && json.value("step", int64_t{0}) == request_.step && json.contains("loss"))
        row = json;
    }
  }
  say(fmt::format("step {}: loss {}, gradient norm {}, state {}", request_.step, out.loss,
                  out.grad_norm, fingerprint));
  if (!row) {
    say("metrics.jsonl has no row of this step to compare with");
    return true;
  }
  const auto number = [&](const char* key) { return row->at(key).is_number() ? row->at(key).get<double>() : std::nan(""); };
  const auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  const bool equal = same(number("loss"), out.loss) && same(number("grad_norm"), out.grad_norm) &&
                     row->value("state_fingerprint", fingerprint) == fingerprint;
  say(equal ? "equal to the row of the run, bit for bit"
            : fmt::format("DIFFERS from the row of the run: loss {}, gradient norm {}{}",
                          row->at("loss").dump(), row->at("grad_norm").dump(),
                          row->contains("state_fingerprint")
                              ? ", state " + row->at("state_fingerprint").get<std::string>()
                              : ""));
  return equal;
}

ExitCode Replay::run() {
  start();
  const bool chief = mesh_->world().rank() == 0;
  std::unique_ptr<JsonlFile> file;
  agree(mesh_->world(), [&] {
    if (chief && !request_.out.empty()) file = std::make_unique<JsonlFile>(request_.out);
  });
  say(fmt::format("{:>5} {:>9} {:>20} {:>14}  {}", "unit", "targets", "loss", "gradient norm",
                  "fingerprint of the gradient"));
  const int64_t first = request_.unit.value_or(0);
  const int64_t end = request_.unit ? first + 1 : step_->num_units();
  for (int64_t number = first; number < end; ++number) {
    const nlohmann::ordered_json json = unit(number);
    say(fmt::format("{:>5} {:>9} {:>20} {:>14.6g}  {}", number, json["targets"].get<int64_t>(),
                    json["loss"].get<double>(), json["grad_norm"].get<double>(),
                    json["fingerprint"].get<std::string>()));
    if (file) file->write(json);
  }
  if (request_.unit) return ExitCode::kOk;
  const StepOutcome out = step_->run(
      request_.step, learning_rate(config_.optim, request_.step, config_.train.steps));
  const bool equal = compare(out, job_fingerprint(*model_, *mesh_));
  return equal ? ExitCode::kOk : ExitCode::kUnhealthy;
}

}  // namespace

ExitCode replay_step(const ReplayRequest& request, std::unique_ptr<Communicator> world) {
  Config config;
  agree(*world, [&] { config = load_config(request.run + "/config.resolved.yaml", {}); });
  return Replay(request, std::move(config), std::move(world)).run();
}

}  // namespace maniple

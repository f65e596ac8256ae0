#include "trainer/trainer.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "core/config_schema.h"
#include "core/files.h"
#include "core/seconds_since.h"
#include "core/signals.h"
#include "interop/hub_model.h"
#include "metrics/console.h"
#include "metrics/jsonl_sink.h"
#include "metrics/tensorboard_sink.h"
#include "optim/schedule.h"
#include "parallel/device.h"
#include "trainer/agreement.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/make_objective.h"
#include "trainer/run_state.h"
#include "trainer/step_metrics.h"

namespace maniple {
namespace {

using Clock = std::chrono::steady_clock;

// mpirun gives rank 0 a pseudo-terminal even when its own output goes to a file or a pipe.
ConsoleStyle console_style() {
  ConsoleStyle style = detect_console_style(stdout);
  if (started_by_mpi()) {
    std::error_code error;
    const auto target =
        std::filesystem::read_symlink(fmt::format("/proc/{}/fd/1", getppid()), error).string();
    if (error || !(target.starts_with("/dev/pts/") || target.starts_with("/dev/tty")))
      style.terminal = false;
  }
  return style;
}

// Bits per byte of text, for sources that are bytes.
double bits_per_byte(double loss, double bytes_per_token) {
  return loss / std::log(2.0) / bytes_per_token;
}

std::vector<TableSection> startup_table(const Config& config, TrainedModel& model,
                                        const ProcessMesh& mesh, const RowSource& rows) {
  const ModelConfig& m = model.model;
  const MeshShape& s = mesh.shape();
  int64_t moe = 0;
  for (const LayerConfig& layer : m.layers) moe += layer.moe;
  const double mib = 1 << 20;
  return {
      {"model",
       {{"family", m.model_type},
        {"parameters", fmt::format("{} ({} active per token)", format_count(static_cast<double>(num_parameters(m))),
                                   format_count(static_cast<double>(num_active_parameters(m))))},
        {"layers", fmt::format("{} ({} MoE: {} experts, top-{}, width {}{})", m.num_layers(), moe,
                               m.num_experts, m.experts_per_token, m.expert_size,
                               m.shared_expert_size ? ", shared " + std::to_string(m.shared_expert_size) : "")},
        {"hidden, heads", fmt::format("{}, {} query / {} key-value of {}", m.hidden_size, m.num_heads,
                                      m.num_kv_heads, m.head_dim)},
        {"precision", config.train.precision},
        {"grid", config.quant.format == "none" ? "none" : config.quant.format + ", " + config.quant.estimator + " estimator"}}},
      {"mesh",
       {{"ranks", fmt::format("{} = {} slices x {}", s.num_ranks(), s.slices, s.slice_size)},
        {"dense", fmt::format("inner_dp {} x tp {}", s.inner_dp(), s.tp)},
        {"sparse", fmt::format("inner_edp {} x ep {} x etp {}", s.inner_edp(), s.ep, s.etp)},
        {"optimizer state", fmt::format("{:.1f} MiB per rank", static_cast<double>(model.optimizer->state_bytes()) / mib)},
        {"exchange", fmt::format("{:.1f} MiB per rank and step", static_cast<double>(model.optimizer->exchange_bytes()) / mib)}}},
      {"batch",
       {{"step", fmt::format("{} rows x {} tokens in {} units", config.batch.rows, config.batch.seq_len,
                             num_units(config.batch, s))},
        {"steps", std::to_string(config.train.steps)}}},
      {"data",
       {{"tokens", format_count(static_cast<double>(rows.num_tokens()))},
        {"rows", fmt::format("{} training, {} validation", rows.num_rows(Split::kTrain),
                             rows.num_rows(Split::kValidation))}}},
  };
}

// Rates of operations; `flops`: 10^9 training operations per token. Recomputed ones count in the
// hardware's figure only, and the head is not recomputed.
void add_speed(StepReport& report, const Config& config, const ModelConfig& model, double flops,
               int64_t num_ranks) {
  const double rate = report.tokens_per_s * flops;
  report.extra.emplace_back("model_gflops", rate);
  if (config.train.recompute) {
    const double head = 2e-9 * static_cast<double>(model.hidden_size * model.vocab_size);
    report.extra.emplace_back("hardware_gflops", rate + report.tokens_per_s * (flops / 3 - head));
  }
  if (config.metrics.peak_gflops > 0)
    report.extra.emplace_back(
        "share_of_peak", rate / (config.metrics.peak_gflops * static_cast<double>(num_ranks)));
}

}  // namespace

ExitCode train(const Config& config, std::unique_ptr<Communicator> world) {
  ModelConfig model_config;
  MeshShape shape;
  std::unique_ptr<RowSource> rows;
  std::unique_ptr<RunLock> lock;
  at::Device device = at::kCPU;
  const bool chief = world->rank() == 0;
  agree(*world, [&] {
    device = find_device(config.run.device, rank_on_host());
    model_config = resolve_model(config.model);
    shape = make_mesh_shape(config.parallel, world->size());
    num_units(config.batch, shape);  // refuse before anything is allocated
    rows = open_row_source(config.data, config.batch.seq_len, model_config.vocab_size,
                           config.run.seed);
    rows = attach_targets(config, model_config, std::move(rows));
    if (!chief) return;
    lock = std::make_unique<RunLock>(config.run.dir);
  });
  ProcessMesh mesh(shape, std::move(world), device);
  std::unique_ptr<TrainedModel> made;
  agree(mesh.world(), [&] { made = std::make_unique<TrainedModel>(config, model_config, mesh); });
  TrainedModel& model = *made;
  TrainStep step(config, model, mesh, *rows, make_objective(config, model_config, mesh));

  const ConsoleStyle style = console_style();
  std::unique_ptr<Console> console;
  std::unique_ptr<EventLog> events;
  if (chief) {
    console = std::make_unique<Console>(stdout, style, config.train.steps);
    events = std::make_unique<EventLog>(config.run.dir + "/events.jsonl");
    console->table(startup_table(config, model, mesh, *rows));
    if (config.moe.aux_coef < 0 && !model.moe_layers.empty())
      console->message(fmt::format("moe.aux_coef is the model's own: {:.3g} on the {} over layers",
                                   model.moe.settings.aux_coef, config.moe.aux_over_layers));
    if (const auto& quantizer = model.optimizer->quantizer())
      for (const std::string& line : quantizer->left_off(model.store)) console->message(line);
  }
  auto say = [&](const std::string& text) {
    if (console) console->message(text);
  };
  auto event = [&](const char* what, const nlohmann::ordered_json& fields) {
    if (events) events->write(std::chrono::system_clock::now(), what, fields);
  };
  if (chief)
    for (const std::string& warning : target_warnings(config, *rows)) say("warning: " + warning);

  // Where to start: the newest good checkpoint, given weights, or random ones.
  int64_t first_step = 1;
  const std::string resume_from = agree_on_text(mesh.world(), [&] { return resume_folder(config, say); });
  if (!resume_from.empty()) {
    CheckpointInfo checkpoint;
    agree(mesh.world(), [&] {
      checkpoint = reopen_checkpoint(resume_from);
      for (const std::string& change : check_resume(config, checkpoint, rows->fingerprint()))
        say("resuming with " + change);
      load_checkpoint(model, checkpoint, true);
    });
    model.optimizer->publish();
    first_step = checkpoint.step + 1;
    step.applied_steps = checkpoint.meta.at("applied_steps").get<int64_t>();
    say(fmt::format("resumed after step {} from {}", checkpoint.step, checkpoint.folder));
    event("resume", {{"step", checkpoint.step}, {"checkpoint", checkpoint.folder}});
  } else if (!config.model.init_from.empty()) {
    const std::string folder = agree_on_text(mesh.world(), [&] {
      const std::string& from = config.model.init_from;
      return is_hub_model(from) ? from : open_checkpoint(from).folder;
    });
    agree(mesh.world(), [&] {
      if (is_hub_model(folder))
        load_hub_weights(model, *open_hub_model(folder).tensors);
      else
        load_checkpoint(model, reopen_checkpoint(folder), false);
      if (chief) keep_imported_files(config, folder);
    });
    model.optimizer->publish();
  } else {
    set_random_weights(model, config.run.seed);
    agree(mesh.world(), [&] {
      if (chief) keep_imported_files(config, "");
    });
    model.optimizer->publish();
  }
  std::unique_ptr<JsonlSink> metrics;
  std::unique_ptr<JsonlFile> load_table;
  std::unique_ptr<TensorboardSink> tensorboard;
  if (chief) {
    write_file_atomic(config.run.dir + "/config.resolved.yaml", config_to_yaml(config));
    drop_steps_after(config.run.dir + "/metrics.jsonl", first_step - 1);
    metrics = std::make_unique<JsonlSink>(config.run.dir + "/metrics.jsonl");
    if (config.metrics.load_every > 0 && !model.moe_layers.empty()) {
      drop_steps_after(config.run.dir + "/expert_load.jsonl", first_step - 1);
      load_table = std::make_unique<JsonlFile>(config.run.dir + "/expert_load.jsonl");
    }
    if (config.metrics.tensorboard)
      tensorboard = std::make_unique<TensorboardSink>(config.run.dir + "/tb",
                                                      std::chrono::system_clock::now(), first_step);
    event("start", {{"ranks", shape.num_ranks()}, {"first_step", first_step}});
  }
  CheckpointWriter checkpoints;
  const std::string attempt = broadcast_text(
      std::to_string(std::chrono::system_clock::now().time_since_epoch().count()), mesh.world());

  const double flops = 1e-9 * flops_per_token(model_config, config.batch.seq_len);
  LoadWatch watch(config.metrics.starved_after, config.metrics.warn_max_vio);
  const auto begin = Clock::now();
  auto last_report = begin;
  double useful = 0;  // seconds in committed attempts
  double stall = 0;   // seconds that training stood still for checkpoints since the last report
  int64_t tokens_since = 0;
  int64_t saved = first_step - 1;
  auto save = [&](int64_t number) {
    const int rank = mesh.world().rank(), writers = mesh.world().size();
    const nlohmann::json meta = checkpoint_meta(config, number, step.applied_steps, *rows);
    const double seconds = checkpoints.start(
        model, chief, [=, &config](const std::vector<TensorSlice>& slices) {
          write_checkpoint(config.run.dir + "/checkpoints", number, rank, writers, attempt, slices,
                           meta, config.checkpoint);
        });
    stall += seconds;
    saved = number;
    event("checkpoint", {{"step", number}, {"stall_s", seconds}});
  };
  for (int64_t number = first_step; number <= config.train.steps; ++number) {
    const double lr = learning_rate(config.optim, number, config.train.steps);
    const StepOutcome o = step.run(number, lr);
    tokens_since += o.num_tokens;
    for (double s : o.seconds) useful += s;
    if (chief && number > config.optim.warmup_steps)
      for (const std::string& warning : watch.update(o.counts)) {
        say("warning: step " + std::to_string(number) + ": " + warning);
        event("warning", {{"step", number}, {"text", warning}});
      }
    if (o.attempts > 1) event("redo", {{"step", number}, {"attempts", o.attempts}});

    const bool with_fingerprint =
        config.metrics.fingerprint_every > 0 && number % config.metrics.fingerprint_every == 0;
    const std::string fingerprint = with_fingerprint ? job_fingerprint(model, mesh) : "";
    if (number % config.metrics.every == 0 || with_fingerprint || number == config.train.steps) {
      const JobNumbers job = gather_job_numbers(step, mesh);
      StepReport report = report_outcome(number, lr, o, model, shape);
      report.tokens_per_s = static_cast<double>(tokens_since) / seconds_since(last_report);
      if (with_fingerprint) report.fingerprint = fingerprint;
      if (metrics) {
        StepReport line = report;
        line.extra.clear();
        console->step(line);
        add_job_metrics(report, o, job, shape, watch);
        add_speed(report, config, model_config, flops, shape.num_ranks());
        report.extra.emplace_back("goodput", useful / seconds_since(begin));
        report.extra.emplace_back("checkpoint_stall", std::exchange(stall, 0));
        metrics->write(report);
        if (tensorboard) tensorboard->write(std::chrono::system_clock::now(), report);
      }
      last_report = Clock::now();
      tokens_since = 0;
    }
    if (load_table && number % config.metrics.load_every == 0)
      load_table->write({{"step", number}, {"counts", o.counts}});
    const bool last = number == config.train.steps;
    if (config.eval.every > 0 && (number % config.eval.every == 0 || last)) {
      const int64_t n = std::min(config.eval.rows, rows->num_rows(Split::kValidation));
      if (n > 0) {
        const double loss = step.evaluate(n);
        const double bytes = rows->bytes_per_token();
        if (metrics) {
          nlohmann::ordered_json record = {{"step", number}, {"eval_loss", loss}};
          if (bytes > 0) record["eval_bits_per_byte"] = bits_per_byte(loss, bytes);
          metrics->write(record);
          if (tensorboard) tensorboard->write(std::chrono::system_clock::now(), record);
        }
        say(fmt::format("validation after step {}: loss {:.4f}{}", number, loss,
                        bytes > 0 ? fmt::format(", {:.3f} bits per byte", bits_per_byte(loss, bytes)) : ""));
      }
    }

    // A signal on one rank is everybody's decision at one step.
    at::Tensor asked = at::tensor(
        std::vector<int64_t>{stop_requested(), take_checkpoint_request(), checkpoints.failed()},
        at::TensorOptions(at::kLong));
    mesh.world().all_reduce(asked);
    if (asked[2].item<int64_t>() > 0) agree(mesh.world(), [&] { checkpoints.finish(); });
    const bool stop = asked[0].item<int64_t>() > 0, wanted = asked[1].item<int64_t>() > 0;
    const bool due = config.checkpoint.every > 0 && (number % config.checkpoint.every == 0 || last);
    if ((due || wanted || stop) && saved != number) save(number);
    if (stop && !last) {
      agree(mesh.world(), [&] { checkpoints.finish(); });
      event("preempted", {{"step", number}});
      say(fmt::format("stopped by a signal after step {}; a checkpoint is written, run the same command to go on", number));
      return ExitCode::kPreempted;
    }
  }
  agree(mesh.world(), [&] { checkpoints.finish(); });
  event("done", {{"step", config.train.steps}});
  return ExitCode::kOk;
}

}  // namespace maniple

#include "trainer/commands.h"

#include <ATen/Parallel.h>
#include <malloc.h>
#include <mpi.h>
#include <torch/version.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "core/config_schema.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/signals.h"
#include "interop/hub_model.h"
#include "interop/safetensors.h"
#include "kernels/microkernel.h"
#include "metrics/console.h"
#include "metrics/job_report.h"
#include "model/shard_rules.h"
#include "parallel/device.h"
#include "trainer/agreement.h"
#include "trainer/bench.h"
#include "trainer/elastic_slice.h"
#include "trainer/export.h"
#include "trainer/inference.h"
#include "trainer/launch_commands.h"
#include "trainer/replay_step.h"
#include "trainer/teach.h"
#include "trainer/trainer.h"

namespace maniple {
namespace {

int rank_of_environment() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

struct Options {
  std::string config, model, against, ids, out, dtype = "fp32", device = "cpu", prompt, resume;
  std::vector<std::string> overrides, request;
  int64_t ranks = 0, tokens = 200, rows = 64;
  double temperature = 0.8, top_p = 0.95;
  uint64_t seed = 1;
  std::string what = "print";
  ReplayRequest replay;
  int64_t unit = -1;
  TeachOptions teach;
  bool launch_teach = false;
  std::string format, quant, fake_quant_out;
  bool requantize = false, verify = false;
};

Config load(const Options& o) { return load_config(o.config, o.overrides); }

ExitCode command_train(const Options& o) {
  set_parent_death_signal();
  const Config config = load(o);
  at::set_num_threads(static_cast<int>(config.run.threads));
  install_signals();
  auto world = started_by_mpi() ? make_mpi_world(/*deadline_s=*/600) : make_single_communicator();
  // Under an agent these ranks are one slice of an elastic job.
  if (const auto line = RankControl::from_environment(static_cast<uint32_t>(world->rank())))
    return train_slice(config, std::move(world), *line);
  return train(config, std::move(world));
}

ExitCode command_launch(const Options& o) {
  if (!o.launch_teach && o.teach.rows_of_run)
    throw UsageError("cannot launch with --rows-of-run: it belongs to --teach; add --teach, or leave it out");
  if (!o.launch_teach) return launch_job(load(o));
  std::vector<std::string> arguments = {o.config};
  arguments.insert(arguments.end(), o.overrides.begin(), o.overrides.end());
  if (o.teach.rows_of_run) arguments.push_back("--rows-of-run");
  return launch_teachers(load(o), arguments);
}

ExitCode command_teach(const Options& o) {
  set_parent_death_signal();
  const Config config = load(o);
  at::set_num_threads(static_cast<int>(config.run.threads));
  install_signals();
  return teach(config, o.teach,
               started_by_mpi() ? make_mpi_world(/*deadline_s=*/600) : make_single_communicator());
}

ExitCode command_bench(const Options& o) {
  set_parent_death_signal();
  const Config config = load(o);
  install_signals();
  return bench(config, started_by_mpi() ? make_mpi_world(/*deadline_s=*/600) : make_single_communicator());
}

ExitCode command_plan(const Options& o) {
  const Config config = load(o);
  const ModelConfig model = resolve_model(config.model);
  const int64_t ranks = o.ranks ? o.ranks : smallest_num_ranks(config.parallel);
  const MeshShape s = make_mesh_shape(config.parallel, ranks);
  check_mesh(model, s);
  if (config.quant.format != "none")
    check_grid_on_mesh(make_grid(config.quant.format, compute_type(parse_precision(config.train.precision))),
                       config.quant.format, model, s);
  const int64_t units = num_units(config.batch, s);
  const double n = static_cast<double>(num_parameters(model));
  const double bytes = config.train.precision == "bf16" ? 2 : config.train.precision == "fp64" ? 8 : 4;
  // Experts are split over ep x etp, the rest over tp (norms and routers are small).
  double experts = 0;
  for (const LayerConfig& layer : model.layers)
    if (layer.moe)
      experts += 3.0 * static_cast<double>(model.num_experts * model.hidden_size * model.expert_size);
  const double held = experts / static_cast<double>(s.ep * s.etp) + (n - experts) / static_cast<double>(s.tp);
  const double state = experts / static_cast<double>(s.slices * s.slice_size) +
                       (n - experts) / static_cast<double>(s.slices * s.slice_size);
  const double mib = 1 << 20;
  print(format_table(
      {{"mesh",
        {{"ranks", fmt::format("{} = {} slices x {}", ranks, s.slices, s.slice_size)},
         {"dense view", fmt::format("inner_dp {} x tp {}", s.inner_dp(), s.tp)},
         {"sparse view", fmt::format("inner_edp {} x ep {} x etp {}", s.inner_edp(), s.ep, s.etp)},
         {"units", fmt::format("{} ({} per slice)", units, units / s.slices)}}},
       {"parameters",
        {{"total", fmt::format("{:.0f}", n)},
         {"active per token", fmt::format("{}", num_active_parameters(model))},
         {"held by a rank", format_count(held)}}},
       {"memory per rank",
        {{"working copy", fmt::format("{:.1f} MiB", held * bytes / mib)},
         {"gradients, sums", fmt::format("{:.1f} MiB", held * 12 / mib)},
         {"optimizer state", fmt::format("{:.1f} MiB", state * 12 / mib)}}},
       {"per rank and step",
        {{"exchange sent", fmt::format("{:.1f} MiB", s.num_ranks() > 1 ? held * 8 / mib : 0)},
         {"compute", fmt::format("{:.2f} GFLOP", flops_per_token(model, config.batch.seq_len) *
                                                     static_cast<double>(config.batch.rows * config.batch.seq_len) /
                                                     static_cast<double>(ranks) * 1e-9)}}}},
      detect_console_style(stdout)));
  return ExitCode::kOk;
}

ExitCode command_config(const Options& o) {
  if (o.what == "schema") {
    print(config_json_schema().dump(2) + "\n");
  } else if (o.what == "reference") {
    print(config_reference_markdown());
  } else {
    if (o.config.empty()) throw UsageError("config print needs a file: maniple config print FILE");
    print(config_to_yaml(load(o)));
  }
  return ExitCode::kOk;
}

ExitCode command_sample(const Options& o) {
  InferenceModel model(o.model, "fp32", o.device);
  print(o.prompt);
  model.sample(o.prompt, o.tokens, o.temperature, o.top_p, o.seed, [](int64_t token) {
    if (token < 256) {
      std::fputc(static_cast<int>(token), stdout);
      std::fflush(stdout);
    } else if (token == 256) {
      print("\n--- end of document ---\n");
    }
  });
  print("\n");
  return ExitCode::kOk;
}

ExitCode command_eval(const Options& o) {
  InferenceModel model(o.model, o.dtype, o.device);
  if (is_hub_model(o.model) && o.config.empty())
    throw UsageError("cannot evaluate " + o.model +
                     ": it does not name its data; add --config FILE, whose data and batch.seq_len are taken");
  Config config = model.config();
  if (!o.config.empty()) {
    const Config given = load_config(o.config, {});
    config.data = given.data;
    config.run.seed = given.run.seed;
    config.batch.seq_len = given.batch.seq_len;
  }
  const auto rows = open_row_source(config.data, config.batch.seq_len, model.model().vocab_size,
                                    config.run.seed);
  const int64_t n = std::min(o.rows, rows->num_rows(Split::kValidation));
  if (n == 0) throw DataError("no validation rows: data.validation of this run is 0");
  TrainStep step(config, model.trained(), model.mesh(), *rows);
  const double loss = step.evaluate(n), bytes = rows->bytes_per_token();
  nlohmann::ordered_json out = {{"step", model.step()}, {"rows", n}, {"eval_loss", loss}};
  if (bytes > 0) out["eval_bits_per_byte"] = loss / std::log(2.0) / bytes;
  print(out.dump() + "\n");
  return ExitCode::kOk;
}

ExitCode command_logits(const Options& o) {
  const std::string text = read_file(o.ids, "--ids");
  const auto json = nlohmann::json::parse(text, nullptr, false);
  auto bad = [&](const std::string& why) {
    return DataError(fmt::format("cannot use --ids {}: {}; give a JSON list of id lists of one length", o.ids, why));
  };
  if (!json.is_array() || json.empty()) throw bad("it is not a non-empty JSON list");
  InferenceModel model(o.model, o.dtype, o.device);
  std::vector<int64_t> flat;
  for (const auto& row : json) {
    if (!row.is_array() || row.empty()) throw bad("a row is not a non-empty list");
    if (row.size() != json[0].size())
      throw bad(fmt::format("rows have {} and {} ids", json[0].size(), row.size()));
    for (const auto& id : row) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= model.model().vocab_size)
        throw bad(fmt::format("id {} is not in [0, {})", id.dump(), model.model().vocab_size));
      flat.push_back(id.get<int64_t>());
    }
  }
  const auto num_rows = static_cast<int64_t>(json.size()), T = static_cast<int64_t>(json[0].size());
  const at::Tensor ids = at::tensor(flat, at::TensorOptions(at::kLong)).view({num_rows, T});
  const at::ScalarType type = o.dtype == "fp64" ? at::kDouble : at::kFloat;
  SafetensorsWriter writer(o.out, {{"logits", type, {num_rows, T, model.model().vocab_size}}});
  writer.write("logits", model.logits(ids).to(type).cpu().contiguous());
  writer.finish();
  return ExitCode::kOk;
}

ExitCode command_export(const Options& o) {
  print(export_model({o.model, o.format, o.quant, o.out, o.requantize, o.fake_quant_out, o.verify}));
  return ExitCode::kOk;
}

ExitCode command_import(const Options& o) {
  print(import_model(o.model, o.out));
  return ExitCode::kOk;
}

ExitCode command_inspect(const Options& o, bool verify) {
  if (!o.against.empty()) {
    compare_teacher_stores(o.model, o.against);
    return ExitCode::kOk;
  }
  if (is_teacher_store(o.model)) {
    describe_teacher_store(o.model, verify);
    return ExitCode::kOk;
  }
  const CheckpointInfo info = verify ? verify_checkpoint(open_checkpoint(o.model).folder) : open_checkpoint(o.model);
  int64_t elements = 0, tensors = 0;
  for (const TensorEntry& t : list_tensors(info)) {
    int64_t n = 1;
    for (int64_t d : t.global_shape) n *= d;
    ++tensors;
    elements += n;
    if (!verify) {
      std::string shape;
      for (int64_t d : t.global_shape) shape += (shape.empty() ? "" : " x ") + std::to_string(d);
      print(fmt::format("{:<72} {}\n", t.name, shape));
    }
  }
  print(fmt::format("{}: step {}, {} tensors, {} elements{}\n", info.folder, info.step, tensors, elements,
                    verify ? ", all hashes good" : ""));
  return ExitCode::kOk;
}

ExitCode command_report(const Options& o) {
  fmt::print("{}", format_job_report(read_job_report(o.model), detect_console_style(stdout)));
  return ExitCode::kOk;
}

ExitCode command_replay(const Options& o) {
  ReplayRequest request = o.replay;
  if (o.unit >= 0) request.unit = o.unit;
  return replay_step(request, started_by_mpi() ? make_mpi_world(600) : make_single_communicator());
}

ExitCode command_doctor() {
  std::vector<std::pair<std::string, std::string>> rows = {
      {"LibTorch", TORCH_VERSION},
      {"CPU capability", at::get_cpu_capability()},
      {"bf16 products", has_microkernel(at::kBFloat16) ? "the processor's" : "in fp32 (the processor has none)"},
      {"processors", std::to_string(std::thread::hardware_concurrency())},
      {"GPUs", describe_gpus()},
      {"MPI", [] {
         char text[MPI_MAX_LIBRARY_VERSION_STRING];
         int length = 0;
         MPI_Get_library_version(text, &length);
         return std::string(text, length).substr(0, std::string(text, length).find(','));
       }()}};
  print(format_table({{"machine", rows}}, detect_console_style(stdout)));
  return ExitCode::kOk;
}

}  // namespace

int run_program(int argc, char** argv) {
  // Large tensors stay in the heap: a fresh mapping per tensor costs a page fault per 4 KiB. (Where
  // tcmalloc is linked in these calls do nothing.)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);

  Options o;
  CLI::App app{"Maniple trains sparse Mixture-of-Experts language models on many machines.\n"
               "Example: mpirun -n 2 maniple train config.yaml parallel.ep=2"};
  app.require_subcommand(1);
  auto add = [&](const char* name, const char* help) { return app.add_subcommand(name, help); };
  auto with_config = [&](CLI::App* c) {
    c->add_option("config", o.config, "YAML file")->required();
    c->add_option("overrides", o.overrides, "group.key=value ...");
  };
  auto* train_c = add("train", "Train a model. Example: mpirun -n 4 maniple train config.yaml parallel.slices=2 optim.lr=3e-4");
  with_config(train_c);
  auto* launch_c = add("launch", "Train elastically: one mpirun per slice, and the job goes on when slices die. Example: maniple launch config.yaml parallel.slices=4");
  with_config(launch_c);
  launch_c->add_flag("--teach", o.launch_teach, "write the teacher store of the config instead (maniple teach)");
  launch_c->add_flag("--rows-of-run", o.teach.rows_of_run, "with --teach: only the rows that train.steps of the config read");
  auto* coordinator_c = add("coordinator", "The coordinator of an elastic job; maniple launch starts it.");
  coordinator_c->add_option("config", o.config, "resolved config of the run")->required();
  auto* agent_c = add("agent", "The agent of one slice of an elastic job; maniple launch starts it.");
  agent_c->add_option("config", o.config, "resolved config of the run")->required();
  auto* ctl_c = add("ctl", "Ask a running elastic job: status, drain SLICE, readmit SLICE, pause, resume, scale N. Example: maniple ctl runs/elastic status");
  ctl_c->add_option("run", o.model, "run folder")->required();
  ctl_c->add_option("request", o.request, "status, drain SLICE, ...")->required();
  auto* plan_c = add("plan", "Print groups, parameters, memory and bytes sent; refuse an impossible mesh. Example: maniple plan config.yaml --ranks 8");
  with_config(plan_c);
  plan_c->add_option("--ranks", o.ranks, "number of ranks (default: the smallest legal)")->check(CLI::PositiveNumber);
  auto* config_c = add("config", "Print the resolved config, its JSON Schema or its reference. Example: maniple config print config.yaml");
  config_c->add_option("what", o.what, "print, schema or reference")->check(CLI::IsMember({"print", "schema", "reference"}))->required();
  config_c->add_option("config", o.config, "YAML file");
  config_c->add_option("overrides", o.overrides, "group.key=value ...");
  auto with_model = [&](CLI::App* c) { c->add_option("model", o.model, "run folder or checkpoint")->required(); };
  auto with_device = [&](CLI::App* c) {
    c->add_option("--device", o.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  };
  auto* sample_c = add("sample", "Continue a text. Example: maniple sample runs/quickstart --prompt 'def '");
  with_model(sample_c);
  sample_c->add_option("--prompt", o.prompt, "text to continue");
  sample_c->add_option("--tokens", o.tokens, "how many to draw")->check(CLI::PositiveNumber);
  sample_c->add_option("--temperature", o.temperature, "0: the most likely token")->check(CLI::NonNegativeNumber);
  sample_c->add_option("--top-p", o.top_p, "draw from the smallest set with this mass")->check(CLI::Range(0.0, 1.0));
  sample_c->add_option("--seed", o.seed, "of the draws");
  with_device(sample_c);
  auto* eval_c = add("eval", "Validation loss of a checkpoint. Example: maniple eval runs/quickstart --rows 128");
  with_model(eval_c);
  eval_c->add_option("--config", o.config, "YAML file with the data, for models that name none");
  eval_c->add_option("--rows", o.rows, "validation rows")->check(CLI::PositiveNumber);
  const auto dtypes = CLI::IsMember({"fp64", "fp32", "bf16"});
  eval_c->add_option("--dtype", o.dtype, "fp64, fp32 or bf16")->check(dtypes);
  with_device(eval_c);
  auto* logits_c = add("logits", "Logits of given ids as safetensors. Example: maniple logits --model DIR --ids ids.json --dtype fp64 --out logits.safetensors");
  logits_c->add_option("--model", o.model, "Hugging Face folder or checkpoint")->required();
  logits_c->add_option("--ids", o.ids, "JSON list of id lists")->required();
  logits_c->add_option("--dtype", o.dtype, "fp64, fp32 or bf16")->check(dtypes);
  with_device(logits_c);
  logits_c->add_option("--out", o.out, "safetensors file to write")->required();
  auto with_stored = [&](CLI::App* c) {
    c->add_option("model", o.model, "run folder, checkpoint or teacher store")->required();
  };
  auto* inspect_c = add("inspect", "List the tensors of a checkpoint, or describe a teacher store. Example: maniple inspect runs/quickstart");
  with_stored(inspect_c);
  inspect_c->add_option("--against", o.against, "another teacher store: the share of tokens whose targets differ");
  auto* verify_c = add("verify", "Check every hash of a checkpoint or teacher store. Example: maniple verify runs/quickstart");
  with_stored(verify_c);
  auto* teach_c = add("teach", "Write a teacher's targets for the training rows of a config. Example: maniple teach config.yaml distill.teacher=runs/teacher distill.store=targets");
  with_config(teach_c);
  teach_c->add_flag("--rows-of-run", o.teach.rows_of_run, "only the rows that train.steps of the config read");
  teach_c->add_flag("--estimate", o.teach.estimate_only, "say what it would take and stop");
  auto* import_c = add("import", "A Hugging Face folder or GGUF file as step 0 of a new run. Example: maniple import --model DIR --out runs/imported");
  import_c->add_option("--model", o.model, "Hugging Face folder or GGUF file")->required();
  import_c->add_option("--out", o.out, "run folder to make")->required();
  auto* export_c = add("export", "A model for other programs. Example: maniple export --model runs/qat --format gguf --out qat.gguf --verify");
  export_c->add_option("--model", o.model, "run folder, checkpoint, Hugging Face folder or GGUF file")->required();
  export_c->add_option("--format", o.format, "hf, gguf or compressed-tensors")->check(CLI::IsMember({"hf", "gguf", "compressed-tensors"}))->required();
  export_c->add_option("--quant", o.quant, "q4_0, q8_0, bf16, f16, int4_g32, int4_g128 or int4_channel (default: the grid that was trained)")
      ->check(CLI::IsMember({"q4_0", "q8_0", "bf16", "f16", "int4_g32", "int4_g128", "int4_channel"}));
  export_c->add_option("--out", o.out, "new folder, or the .gguf file")->required();
  export_c->add_flag("--requantise", o.requantize, "take another grid than the one that was trained");
  export_c->add_option("--fake-quant-out", o.fake_quant_out, "safetensors file: every tensor as the file dequantises, F32");
  export_c->add_flag("--verify", o.verify, "reload what was written and compare tensors and logits");
  auto* replay_c = add("replay", "Compute a step of a past run again, unit by unit, on one slice. Example: maniple replay runs/quickstart --step 120");
  replay_c->add_option("run", o.replay.run, "run folder")->required();
  replay_c->add_option("--step", o.replay.step, "from 1")->required()->check(CLI::PositiveNumber);
  replay_c->add_option("--unit", o.unit, "only this unit of the step, from 0")->check(CLI::NonNegativeNumber);
  replay_c->add_option("--out", o.replay.out, "JSON lines: units with norms and fingerprints of each layer");
  auto* report_c = add("report", "What an elastic job did with its time: goodput, epochs, time line. Example: maniple report runs/elastic");
  report_c->add_option("run", o.model, "run folder")->required();
  auto* bench_c = add("bench", "Measure the speed of a config: phases, share of the product peak. Example: maniple bench config.yaml run.threads=2");
  with_config(bench_c);
  auto* doctor_c = add("doctor", "Print what this machine offers. Example: maniple doctor");
  (void)doctor_c;

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    // CLI11 takes an unknown command for none.
    const bool unknown = app.get_subcommands().empty() && argc > 1 && argv[1][0] != '-';
    const std::string what = unknown ? fmt::format("there is no command '{}'", argv[1]) : e.what();
    if (rank_of_environment() == 0)
      std::fprintf(stderr, "maniple: %s; see maniple --help\n", what.c_str());
    return static_cast<int>(ExitCode::kUsage);
  }

  const int rank = rank_of_environment();
  try {
    ExitCode code = ExitCode::kOk;
    if (*train_c) code = command_train(o);
    else if (*launch_c) code = command_launch(o);
    else if (*coordinator_c) code = coordinate_job(load(o));
    else if (*agent_c) code = run_agent(load(o), o.config);
    else if (*ctl_c) code = control_job(o.model, o.request);
    else if (*plan_c) code = command_plan(o);
    else if (*config_c) code = command_config(o);
    else if (*sample_c) code = command_sample(o);
    else if (*eval_c) code = command_eval(o);
    else if (*logits_c) code = command_logits(o);
    else if (*import_c) code = command_import(o);
    else if (*export_c) code = command_export(o);
    else if (*inspect_c) code = command_inspect(o, false);
    else if (*verify_c) code = command_inspect(o, true);
    else if (*teach_c) code = command_teach(o);
    else if (*replay_c) code = command_replay(o);
    else if (*report_c) code = command_report(o);
    else if (*bench_c) code = command_bench(o);
    else code = command_doctor();
    finalize_mpi();
    return static_cast<int>(code);
  } catch (const std::exception& e) {
    const auto* error = dynamic_cast<const Error*>(&e);
    const int code = static_cast<int>(error ? error->code() : ExitCode::kInternal);
    const auto* agreed = dynamic_cast<const AgreedError*>(&e);
    int initialized = 0;
    MPI_Initialized(&initialized);
    // Before MPI starts every rank sees the same error, and rank 0 speaks.
    const bool speaks = agreed ? agreed->speaks : initialized || rank == 0;
    std::fflush(stdout);
    if (speaks)
      std::fprintf(stderr, "maniple: %s%s\n", e.what(),
                   rank ? fmt::format(" [rank {}]", rank).c_str() : "");
    std::fflush(stderr);
    if (agreed)
      finalize_mpi();
    else if (initialized)
      MPI_Abort(MPI_COMM_WORLD, code);  // this rank alone knows: end the others
    _exit(code);
  }
}

}  // namespace maniple

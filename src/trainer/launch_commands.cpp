#include "trainer/launch_commands.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "core/config_schema.h"
#include "core/files.h"
#include "elastic/decision_log.h"
#include "interop/hub_model.h"
#include "launch/agent.h"
#include "launch/clock.h"
#include "launch/coordinator_shell.h"
#include "launch/hosts.h"
#include "launch/job_token.h"
#include "launch/launcher.h"
#include "metrics/console.h"
#include "metrics/job_report.h"
#include "metrics/tensorboard_sink.h"
#include "model/shard_rules.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/elastic_plan.h"
#include "trainer/make_objective.h"
#include "trainer/teach_job.h"

namespace maniple {
namespace {

constexpr char kResolved[] = "/config.resolved.yaml";

Timeouts timeouts_of(const Config& config) {
  return Timeouts(static_cast<Time>(std::llround(config.elastic.lease * kSecond)));
}

// "<address>\n<token>\n", for those who may read the run folder's secrets: its owner.
std::string control_path(const std::string& run_dir) { return run_dir + "/elastic/control"; }

std::string self() { return "/proc/self/exe"; }
// For other processes and hosts.
std::string program() { return std::filesystem::read_symlink(self()).string(); }

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  if (!value)
    throw UsageError(fmt::format("{} is not set: this command is started by maniple launch", name));
  return value;
}

std::string variable_or(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

// Settings of Open MPI 4 (ORTE) and 5 (PRRTE) for a slice; other libraries ignore them. No limit on
// ranks per processor, no binding of all slices to the same ones, waits that yield, and no patience
// with the siblings of a dead rank.
std::vector<std::pair<std::string, std::string>> mpi_settings() {
  std::vector<std::pair<std::string, std::string>> settings = {
      {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
      {"OMPI_MCA_hwloc_base_binding_policy", "none"},
      {"OMPI_MCA_mpi_yield_when_idle", "1"},
      {"OMPI_MCA_odls_base_sigkill_timeout", "0"},
      {"OMPI_MCA_orte_execute_quiet", "1"},
      {"PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"},
      {"PRTE_MCA_hwloc_default_binding_policy", "none"},
      {"PRTE_MCA_odls_base_sigkill_timeout", "0"}};
  if (::geteuid() == 0)  // whoever started the job as root has decided
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                             "PRTE_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"})
      settings.push_back({name, "1"});
  return settings;
}

// Where the slices run and how an agent is started there; nothing without a list of hosts.
std::vector<LauncherConfig::Place> place_agents(const Config& config, uint32_t num_slots) {
  std::vector<LauncherConfig::Place> places;
  if (config.elastic.hosts.empty()) return places;
  for (const std::string& host : place_slots(parse_hosts(config.elastic.hosts), num_slots))
    places.push_back({host, remote_words(config.elastic.remote, host)});
  check_plain_word(program(), "the program");
  check_plain_word(config.run.dir, "run.dir");
  check_plain_word(std::filesystem::current_path().string(), "the current folder");
  return places;
}

std::string listening_address(const Config& config) {
  std::string address = config.elastic.address;
  if (address.empty())
    address = config.elastic.hosts.empty() ? "127.0.0.1" : address_for(parse_hosts(config.elastic.hosts));
  try {
    return control_address(address, 0);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("elastic.address: {}", error.what()));
  }
}

std::vector<TableSection> job_table(const Config& config, const BlockLayout& layout) {
  const ModelConfig model = resolve_model(config.model);
  const MeshShape shape = slice_shape(config, 0);
  const int64_t units = num_units(config.batch, shape), slices = config.parallel.slices;
  const auto longest = (units + slices - 1) / slices;
  std::string kept = fmt::format("{:.0f} %", 100.0);
  if (slices > 1)
    kept = fmt::format("{:.0f} %", 100.0 * static_cast<double>(longest) /
                                       std::ceil(static_cast<double>(units) / static_cast<double>(slices - 1)));
  return {
      {"model",
       {{"family", model.model_type},
        {"parameters", fmt::format("{} ({} active per token)",
                                   format_count(static_cast<double>(num_parameters(model))),
                                   format_count(static_cast<double>(num_active_parameters(model))))},
        {"precision", config.train.precision}}},
      {"job",
       {{"slices", fmt::format("{} of {} ranks (tp {} ep {} etp {}){}", slices, shape.slice_size, shape.tp,
                               shape.ep, shape.etp,
                               config.elastic.spares ? fmt::format(", {} spare", config.elastic.spares) : "")},
        {"units", fmt::format("{} a step; speed without one slice {}", units, kept)},
        {"state", fmt::format("{} blocks a position, redundancy {}", layout.num_blocks,
                              config.elastic.redundancy == "auto" ? "shadow" : config.elastic.redundancy)},
        {"lease", fmt::format("{:g} s", config.elastic.lease)},
        {"steps", fmt::format("{} of {} rows x {} tokens", config.train.steps, config.batch.rows,
                              config.batch.seq_len)},
        {"run folder", config.run.dir}}},
  };
}

void show_record(Console& console, const nlohmann::ordered_json& record) {
  if (!record.contains("loss")) {
    std::string text = fmt::format("validation after step {}: loss {:.4f}", record.value("step", 0),
                                   record.value("eval_loss", 0.0));
    if (record.contains("eval_bits_per_byte"))
      text += fmt::format(", {:.3f} bits per byte", record.value("eval_bits_per_byte", 0.0));
    console.message(text);
    return;
  }
  const auto number = [&](const char* name) {
    const auto at = record.find(name);
    return at != record.end() && at->is_number() ? at->get<double>() : std::nan("");
  };
  StepReport report;
  report.step = record.value("step", int64_t{0});
  report.loss = number("loss");
  report.grad_norm = number("grad_norm");
  report.lr = number("lr");
  report.tokens = record.value("tokens", int64_t{0});
  report.tokens_per_s = number("tokens_per_s");
  report.aux_loss = number("aux_loss");
  report.z_loss = number("z_loss");
  report.extra = {{"slices", number("slices")}};
  console.step(report);
}

// What a new job begins with.
struct Beginning {
  Step step = 0, verified = 0;   // its checkpoint, and the newest verified one
  std::vector<SliceId> burn_in;         // slices that were quarantined
  std::map<SliceId, uint32_t> strikes;  // wrong results of the others
};

std::string beginning_path(const std::string& run_dir) { return run_dir + "/elastic/start.json"; }

void write_beginning(const std::string& run_dir, const Beginning& b) {
  const nlohmann::json json = {
      {"step", b.step}, {"verified", b.verified}, {"burn_in", b.burn_in}, {"strikes", b.strikes}};
  write_file_atomic(beginning_path(run_dir), json.dump() + "\n");
}

Beginning read_beginning(const std::string& run_dir) {
  const auto json = nlohmann::json::parse(read_file(beginning_path(run_dir), "start of the job"));
  return {json.at("step"), json.at("verified"), json.at("burn_in"),
          json.value("strikes", std::map<SliceId, uint32_t>{})};
}

// What the last job in this folder decided, or was to begin with when it decided nothing. Nothing when
// there was none or its log cannot be read.
History last_job(const std::string& run_dir) {
  const std::string log = decision_log_path(run_dir);
  History history;
  try {
    if (::access(log.c_str(), F_OK) == 0) history = DecisionLog(log).history();
  } catch (const DataError& error) {
    fmt::print("what the last job knew of its checkpoints is lost: {}\n", error.what());
    return {};
  }
  if (history.incarnation > 0 || ::access(beginning_path(run_dir).c_str(), F_OK) != 0) return history;
  const Beginning beginning = read_beginning(run_dir);
  history.verified = beginning.verified;
  if (beginning.step > beginning.verified) history.unverified = {beginning.step};
  for (const SliceId slice : beginning.burn_in) history.slots[slice].burn_in = true;
  for (const auto& [slice, strikes] : beginning.strikes) history.slots[slice].strikes = strikes;
  return history;
}

// A job that has found a slice to compute wrongly may end before it went back.
void leave_suspect_checkpoints(const Config& config, const History& last) {
  if (!last.suspect || config.run.resume == "never") return;
  fmt::print("a slice of the last job computed wrongly: going back to the verified {}\n",
             last.verified > 0 ? fmt::format("checkpoint of step {}", last.verified) : "initial state");
  drop_checkpoints(config.run.dir + "/checkpoints", last.verified);
}

// A job that begins with the checkpoint of step `start` knows no more of it, and of the devices, than
// the last one did.
Beginning after(const History& last, Step start, uint32_t num_slots) {
  const auto& open = last.unverified;
  Beginning beginning{start, start, {}, {}};
  if (std::find(open.begin(), open.end(), start) != open.end()) beginning.verified = last.verified;
  for (const auto& [slice, slot] : last.slots) {
    const bool quarantined = slot.banned && slot.code == static_cast<int32_t>(ExitCode::kUnhealthy);
    if (slice >= num_slots) continue;
    if (quarantined || slot.burn_in) {
      fmt::print("slice {} was quarantined: it must pass its burn-in first\n", slice);
      beginning.burn_in.push_back(slice);
    } else if (slot.strikes > 0) {
      fmt::print("slice {} has given {} wrong result{} before\n", slice, slot.strikes,
                 slot.strikes == 1 ? "" : "s");
      beginning.strikes[slice] = slot.strikes;
    }
  }
  return beginning;
}

void check_resume_mode(const std::string& mode) {
  if (mode == "auto" || mode == "never") return;
  throw ConfigError(fmt::format(
      "run.resume={}: under launch a run goes on from its own checkpoints (auto) or starts anew "
      "(never); for weights from elsewhere set model.init_from",
      mode));
}

int64_t find_start(const Config& config, const RowSource& rows) {
  const std::string folder = resume_folder(
      config, [](const std::string& reason) { fmt::print("{}\n", reason); });
  if (folder.empty()) return 0;
  const CheckpointInfo checkpoint = reopen_checkpoint(folder);
  for (const std::string& change : check_resume(config, checkpoint, rows.fingerprint()))
    fmt::print("resuming with {}\n", change);
  fmt::print("resuming after step {} from {}\n", checkpoint.step, checkpoint.folder);
  return checkpoint.step;
}

// A job's decisions are of no use to the next one, of which no process knows the job's state: it
// starts from a checkpoint. They are kept for people.
void begin_new_log(const Config& config, const Beginning& beginning) {
  write_beginning(config.run.dir, beginning);
  const std::string log = decision_log_path(config.run.dir);
  for (int n = 1; ::access(log.c_str(), F_OK) == 0; ++n) {
    const std::string aside = fmt::format("{}.{}", log, n);
    if (::access(aside.c_str(), F_OK) != 0 && ::rename(log.c_str(), aside.c_str()) != 0)
      throw IoError(fmt::format("cannot rename '{}': {}", log, std::strerror(errno)));
  }
  ::unlink((config.run.dir + "/elastic/rows").c_str());
  for (int64_t slice = 0; slice < config.parallel.slices + config.elastic.spares; ++slice)
    ::unlink(fmt::format("{}/elastic/slice-{}.jsonl", config.run.dir, slice).c_str());
  drop_steps_after(config.run.dir + "/metrics.jsonl", beginning.step);
}

}  // namespace

ExitCode launch_job(Config config) {
  const MeshShape shape = slice_shape(config, 0);
  config.parallel.slice_size = shape.slice_size;
  const ModelConfig model = resolve_model(config.model);
  check_mesh(model, shape);
  const BlockLayout layout = block_layout(config);
  LauncherConfig launcher;
  launcher.run_dir = config.run.dir;
  launcher.num_slots = static_cast<uint32_t>(config.parallel.slices + config.elastic.spares);
  launcher.places = place_agents(config, launcher.num_slots);
  launcher.address = listening_address(config);
  check_resume_mode(config.run.resume);
  // What every slice would refuse is refused here, before any is started.
  const auto rows = attach_targets(
      config, model, open_row_source(config.data, config.batch.seq_len, model.vocab_size, config.run.seed));
  // A slice that is started later, or elsewhere, must find the same data.
  for (size_t i = 0; i < config.data.sources.size(); ++i)
    config.data.sources[i].hash = fmt::format("{:016x}", rows->sources()[i].content);
  Console(stdout, detect_console_style(stdout), config.train.steps).table(job_table(config, layout));
  std::fflush(stdout);
  ensure_directory(config.run.dir + "/elastic");
  ensure_directory(config.run.dir + "/logs");
  {
    const RunLock lock(config.run.dir);  // no other job is writing here
    const History last = last_job(config.run.dir);
    leave_suspect_checkpoints(config, last);
    const int64_t start = find_start(config, *rows);
    begin_new_log(config, after(last, start, launcher.num_slots));
    std::fflush(stdout);  // the coordinator writes there too
    const std::string& from = config.model.init_from;
    if (start == 0)
      keep_imported_files(config, from.empty() || is_hub_model(from) ? from : open_checkpoint(from).folder);
  }
  const std::string resolved = config.run.dir + kResolved;
  write_file_atomic(resolved, config_to_yaml(config));

  launcher.token = make_job_token();
  launcher.coordinator = {self(), "coordinator", resolved};
  launcher.agent = {launcher.places.empty() ? self() : program(), "agent", resolved};
  launcher.timeouts = timeouts_of(config);
  Launcher job(launcher);
  const std::string control = control_path(config.run.dir);
  ::unlink(control.c_str());
  const mode_t before = ::umask(077);
  write_file_atomic(control, job.address() + "\n" + launcher.token + "\n");
  ::umask(before);
  const int code = job.run();
  ::unlink(control.c_str());
  try {
    const JobReport report = read_job_report(config.run.dir);
    fmt::print("goodput {:.3f}; maniple report {} says where the time went\n", report.goodput(), config.run.dir);
  } catch (const Error&) {
    // Nothing was trained.
  }
  return static_cast<ExitCode>(code);
}

ExitCode launch_teachers(const Config& config, const std::vector<std::string>& arguments) {
  return run_teach_job(config, {arguments, mpi_settings()});
}

ExitCode coordinate_job(const Config& config) {
  CoordinatorShellConfig shell;
  shell.job.slices = static_cast<uint32_t>(config.parallel.slices);
  shell.job.spares = static_cast<uint32_t>(config.elastic.spares);
  shell.job.min_slices = static_cast<uint32_t>(config.elastic.min_slices);
  shell.job.max_restarts = static_cast<uint32_t>(config.elastic.max_restarts);
  shell.job.max_strikes = static_cast<uint32_t>(config.sdc.max_strikes);
  shell.job.probation = config.sdc.probation;
  const int64_t canaries = canary_interval(
      config.sdc.canary_every, num_units(config.batch, slice_shape(config, 0)), config.parallel.slices);
  shell.job.verify_after = 2 * config.parallel.slices * canaries;
  shell.job.last_step = config.train.steps;
  shell.job.layout = block_layout(config);
  shell.job.config_hash = hash_name(config_to_yaml(config));
  shell.job.timeouts = timeouts_of(config);
  shell.run_dir = config.run.dir;
  shell.token = read_job_token("-");
  shell.listener = std::atoi(variable(kListenerVariable).c_str());
  const Beginning beginning = read_beginning(config.run.dir);
  shell.job.first = beginning.step;
  shell.job.first_verified = beginning.verified;
  shell.job.burn_in = beginning.burn_in;
  shell.job.strikes = beginning.strikes;
  const std::string checkpoints = config.run.dir + "/checkpoints";
  shell.publish = [&](const PublishCheckpoint& complete) {
    const auto manifest = nlohmann::json::parse(complete.parts.at(0));
    publish_checkpoint(checkpoints, complete.step, manifest.at("num_writers"),
                       manifest.at("attempt"), manifest.at("meta"), config.checkpoint,
                       complete.keep_from);
  };
  shell.drop_checkpoints = [&](Step after) { drop_checkpoints(checkpoints, after); };
  Console console(stdout, detect_console_style(stdout), config.train.steps);
  std::unique_ptr<TensorboardSink> tensorboard;
  if (config.metrics.tensorboard)
    tensorboard = std::make_unique<TensorboardSink>(config.run.dir + "/tb",
                                                    std::chrono::system_clock::now(), shell.job.first + 1);
  shell.show_record = [&](const nlohmann::ordered_json& record) {
    show_record(console, record);
    if (tensorboard) tensorboard->write(std::chrono::system_clock::now(), record);
  };
  shell.show_event = [&](const std::string& event, const std::string& text) {
    if (event != "suspect") console.message(fmt::format("{}: {}", event, text));
  };
  return static_cast<ExitCode>(CoordinatorShell(shell).run());
}

ExitCode run_agent(const Config& config, const std::string& config_path) {
  AgentConfig agent;
  const std::string slice = variable(kSliceVariable);
  agent.slice = static_cast<SliceId>(std::atoi(slice.c_str()));
  agent.ranks = static_cast<uint32_t>(slice_shape(config, 0).slice_size);
  agent.start = static_cast<uint32_t>(std::atoi(variable(kStartVariable).c_str()));
  char own_name[256] = "";
  ::gethostname(own_name, sizeof own_name - 1);
  agent.host = variable_or(kHostVariable, own_name);
  agent.coordinator = variable(kCoordinatorVariable);
  agent.address = config.elastic.interface.empty()
                      ? address_towards(ip_of_control_address(agent.coordinator))
                      : address_of_interface(config.elastic.interface);
  agent.token = read_job_token("-");
  agent.command = {config.elastic.mpirun, "-n",        std::to_string(agent.ranks),
                   program(),             "train", config_path};
  agent.environment = mpi_settings();
  agent.output = fmt::format("{}/logs/slice-{}.log", config.run.dir, slice);
  agent.folder = variable_or(kFolderVariable, "");
  agent.launcher = take_standard_input();
  agent.timeouts = timeouts_of(config);
  return static_cast<ExitCode>(Agent(agent).run());
}

ExitCode control_job(const std::string& run_dir, const std::vector<std::string>& request) {
  struct Form {
    const char* name;
    Command command;
    bool has_number;
  };
  static constexpr Form kForms[] = {
      {"status", Command::kStatus, false}, {"drain", Command::kDrain, true},
      {"pause", Command::kPause, false},   {"resume", Command::kResume, false},
      {"scale", Command::kScale, true},    {"readmit", Command::kReadmit, true},
      {"clear-strikes", Command::kReadmit, true}};  // a slice's device is known by its slot
  const std::string usage =
      "use status, drain SLICE, readmit SLICE (or clear-strikes SLICE), pause, resume or scale N";
  const Form* form = nullptr;
  for (const Form& f : kForms)
    if (!request.empty() && request[0] == f.name) form = &f;
  if (!form || request.size() != (form->has_number ? 2u : 1u))
    throw UsageError("cannot ask the job in " + run_dir + ": " + usage);
  uint32_t number = 0;
  if (form->has_number) {
    const std::string& text = request[1];
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != text.npos)
      throw UsageError(fmt::format("cannot ask the job in {}: '{}' is no number; {}", run_dir, text, usage));
    number = static_cast<uint32_t>(std::stoul(text));
  }
  const std::string control = control_path(run_dir);
  if (::access(control.c_str(), F_OK) != 0)
    throw NoInputError(fmt::format("cannot ask a job in {}: no job runs there ({} is missing)", run_dir, control));
  const std::string text = read_file(control, "control file");
  const size_t newline = text.find('\n');
  const std::string address = text.substr(0, newline);
  const std::string token = text.substr(newline + 1, text.size() - newline - 2);

  asio::io_context context{1};
  std::optional<ControlReply> reply;
  ControlClient::Events events;
  std::shared_ptr<ControlClient> line;
  events.connected = [&] {
    line->send(encode_message({0, 0, 0, 0, Control{1, form->command, number}}));
  };
  events.frame = [&](std::string_view payload) {
    const auto envelope = decode_message(payload);
    if (const auto* r = envelope ? std::get_if<ControlReply>(&envelope->message) : nullptr) reply = *r;
  };
  events.lost = [](const std::string&) {};
  line = std::make_shared<ControlClient>(context, address, ControlHello{token, Role::kOperator, 0, 0, 0},
                                         100 * kMillisecond, 5 * kSecond, events);
  line->start();
  const Time deadline = monotonic_now() + 10 * kSecond;
  while (!reply && monotonic_now() < deadline) context.run_one_for(std::chrono::milliseconds(100));
  line->close();
  if (!reply)
    throw CommError(fmt::format("the job in {} did not answer at {} within 10 s; is its launcher alive?",
                                run_dir, address));
  std::string answer = reply->text;
  if (answer.empty() || answer.back() != '\n') answer += '\n';
  std::fwrite(answer.data(), 1, answer.size(), reply->ok ? stdout : stderr);
  return reply->ok ? ExitCode::kOk : ExitCode::kUsage;
}

}  // namespace maniple

#include "trainer/teach.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <sstream>
#include <thread>

#include "core/random.h"
#include "core/seconds_since.h"
#include "core/signals.h"
#include "data/teacher_store.h"
#include "data/teacher_writers.h"
#include "metrics/console.h"
#include "objectives/distill_targets.h"
#include "objectives/teacher_targets.h"
#include "parallel/device.h"
#include "trainer/agreement.h"
#include "trainer/make_objective.h"
#include "trainer/teacher_model.h"

namespace maniple {
namespace {

using Clock = std::chrono::steady_clock;

void say(const std::string& text) {
  std::fputs((text + "\n").c_str(), stdout);
  std::fflush(stdout);
}

// The rows of one file to write.
struct FilePlan {
  RowSource::Source source;
  std::vector<int64_t> rows;
};

std::set<SampleId> wanted_samples(const Config& config, const RowSource& rows, bool of_run) {
  std::set<SampleId> out;
  if (of_run) {
    for (int64_t number = 0; number < config.train.steps * config.batch.rows; ++number)
      out.insert(rows.sample_of(Split::kTrain, static_cast<uint64_t>(number)));
    return out;
  }
  for (const RowSource::Source& source : rows.sources())
    for (int64_t row = 0; row < source.train_rows; ++row) out.insert({source.content, row});
  return out;
}

int64_t rows_per_file(const Config& config) {
  return std::max<int64_t>(1, config.distill.shard_tokens / config.batch.seq_len);
}

// Equal for processes that may write together: whichever files are done, they cut the rest alike.
uint64_t work_number(const Config& config, const std::set<SampleId>& wanted) {
  uint64_t hash = mix64(static_cast<uint64_t>(rows_per_file(config)));
  for (const SampleId& sample : wanted)
    hash = mix64(hash ^ mix64(sample.source + mix64(static_cast<uint64_t>(sample.row))));
  return hash;
}

// What the store lacks, cut into files of rows of one source. there: '1' for each wanted sample that
// the store has, as the chief saw it: others may be writing, and all ranks need the same plan.
std::vector<FilePlan> plan(const Config& config, const RowSource& rows, const std::set<SampleId>& wanted,
                           const std::string& there) {
  std::vector<FilePlan> shards;
  const std::vector<RowSource::Source> sources = rows.sources();
  size_t number = 0;
  for (const SampleId& sample : wanted) {
    if (there[number++] == '1') continue;
    const bool fits = !shards.empty() && shards.back().source.content == sample.source &&
                      static_cast<int64_t>(shards.back().rows.size()) < rows_per_file(config);
    if (!fits)
      shards.push_back({*std::find_if(sources.begin(), sources.end(),
                                      [&](const auto& s) { return s.content == sample.source; }),
                        {}});
    shards.back().rows.push_back(sample.row);
  }
  return shards;
}

// Runs the teacher over rows of this rank; every rank of a slice makes the same number of calls.
class Lecture {
 public:
  Lecture(const Config& config, const RowSource& rows, TeacherModel& teacher, ProcessMesh& mesh)
      : config_(config), rows_(rows), teacher_(teacher), mesh_(mesh), spec_(target_spec(config.distill)) {}

  // Throws only after the forward pass of the slice, and then on all of its tp ranks.
  std::vector<TeacherRow> targets(const std::vector<SampleId>& samples) {
    MicroBatch b;
    const auto B = static_cast<int64_t>(samples.size()), S = config_.batch.seq_len;
    for (const SampleId& sample : samples) b.rows.push_back(rows_.read(sample));
    const auto tensor = [&](std::vector<int32_t> Row::* part) {
      at::Tensor t = at::empty({B, S}, at::TensorOptions(at::kLong));
      int64_t* to = t.data_ptr<int64_t>();
      for (const Row& row : b.rows) to = std::copy((row.*part).begin(), (row.*part).end(), to);
      return t.to(mesh_.device());
    };
    b.ids = tensor(&Row::input);
    b.target = tensor(&Row::target);
    b.position = tensor(&Row::position);
    b.document = tensor(&Row::document);
    const auto begin = Clock::now();
    const at::Tensor h = teacher_.hidden(b);
    forward_seconds += seconds_since(begin);
    return teacher_targets(h, teacher_.head(), teacher_.model().vocab_size, b.rows, spec_, mesh_.tp());
  }

  double forward_seconds = 0;  // in the teacher's decoder

 private:
  const Config& config_;
  const RowSource& rows_;
  TeacherModel& teacher_;
  ProcessMesh& mesh_;
  const TargetSpec spec_;
};

void say_estimate(const TargetSpec& spec, const std::vector<TeacherRow>& probe, int64_t tokens,
                  int64_t seq_len, double seconds) {
  double entries = 0, count = 0;
  for (const TeacherRow& row : probe) {
    entries += static_cast<double>(row.id.size());
    count += static_cast<double>(row.mass.size());
  }
  const double per_token = entries / count * spec.entry_bits() / 8 + 4 + 24.0 / static_cast<double>(seq_len);
  say(fmt::format("estimate: {} tokens, about {} bytes ({:.1f} per token, {:.1f} ids), {:.0f} s",
                  format_count(static_cast<double>(tokens)),
                  format_count(per_token * static_cast<double>(tokens)), per_token, entries / count,
                  seconds));
}

void say_progress(int64_t done, int64_t all, double seconds) {
  const double share = static_cast<double>(done) / static_cast<double>(all);
  say(fmt::format("{:.1f} % of {} tokens, {} tokens/s, {:.0f} s left", 100 * share,
                  format_count(static_cast<double>(all)),
                  format_count(static_cast<double>(done) / seconds), seconds / share - seconds));
}

int64_t num_rows(const std::vector<FilePlan>& shards) {
  int64_t n = 0;
  for (const FilePlan& shard : shards) n += static_cast<int64_t>(shard.rows.size());
  return n;
}

// Deals the files of the plan to this job, a file for each lane and turn, and leaves out what other
// jobs write or have written. Collective, but for what says otherwise.
class FileQueue {
 public:
  FileQueue(const std::string& store, const std::vector<FilePlan>& files, TeacherWriters* writers,
            Communicator& world)
      : store_(store), files_(files), writers_(writers), world_(world), there_(files.size()) {}

  // Numbers of at most `lanes` files; none: others write the rest just now, or have (all_there).
  std::vector<size_t> take(size_t lanes) {
    const std::string text = agree_on_text(world_, [&] {
      std::string said;
      size_t taken = 0;
      for (size_t i = 0; i < files_.size(); ++i) {
        const uint64_t source = files_[i].source.content;
        const int64_t row = files_[i].rows[0];
        if (is_there(i) || lanes == 0) continue;
        if (taken == lanes) break;
        if (!writers_->claim(source, row)) continue;
        if (is_there(i)) {  // since the claim was free again
          writers_->release(source, row);
          continue;
        }
        said += fmt::format("{} ", i);
        ++taken;
      }
      return said.empty() && rows_there() == num_rows(files_) ? "all" : said;
    });
    all_there_ = text == "all";
    std::vector<size_t> turn;
    std::istringstream numbers(text);
    for (size_t i = 0; numbers >> i;) turn.push_back(i);
    return turn;
  }
  bool all_there() const { return all_there_; }

  // Of the chief alone.
  void release(const std::vector<size_t>& turn) {
    for (const size_t i : turn) writers_->release(files_[i].source.content, files_[i].rows[0]);
  }
  // Of the chief alone: rows of the plan that are in the store, by whomever.
  int64_t rows_there() const {
    int64_t n = 0;
    for (size_t i = 0; i < files_.size(); ++i)
      if (there_[i]) n += static_cast<int64_t>(files_[i].rows.size());
    return n;
  }

 private:
  bool is_there(size_t i) {
    if (!there_[i])
      there_[i] = std::filesystem::exists(
          teacher_shard_path(store_, files_[i].source.content, files_[i].rows[0]));
    return there_[i];
  }

  const std::string store_;
  const std::vector<FilePlan>& files_;
  TeacherWriters* writers_;  // the chief's
  Communicator& world_;
  std::vector<bool> there_;
  bool all_there_ = false;
};

}  // namespace

void check_teach_config(const Config& config) {
  if (config.distill.teacher.empty() || config.distill.store.empty())
    throw ConfigError(fmt::format(
        "cannot teach: distill.teacher is '{}', distill.store is '{}'; both must be given; set "
        "distill.teacher=CHECKPOINT distill.store=FOLDER",
        config.distill.teacher, config.distill.store));
  if (config.distill.variant == "full")
    throw ConfigError(
        "cannot teach: distill.variant=full needs whole distributions, which no store holds; set "
        "another distill.variant, or train with distill.teacher alone");
  if (config.distill.temperature != 1 && !config.distill.variant.starts_with("topk"))
    throw ConfigError(fmt::format(
        "cannot teach: distill.temperature={} with distill.variant={}; sampled targets are drawn at "
        "temperature 1; set distill.temperature=1",
        config.distill.temperature, config.distill.variant));
}

ExitCode teach(const Config& given, const TeachOptions& options,
               std::unique_ptr<Communicator> world) {
  Config config = given;
  config.batch.units = 0;
  MeshShape shape;
  ModelConfig student;
  std::unique_ptr<RowSource> rows;
  std::set<SampleId> wanted;
  std::unique_ptr<TeacherWriters> writers;  // of the chief
  at::Device device = at::kCPU;
  const bool chief = world->rank() == 0;
  agree(*world, [&] {
    check_teach_config(config);
    device = find_device(config.run.device, rank_on_host());
    shape = make_mesh_shape(config.parallel, world->size());
    config.batch.rows = shape.slices * shape.inner_dp() * config.batch.micro_batch_rows;
    student = resolve_model(config.model);
    rows = open_row_source(config.data, config.batch.seq_len, student.vocab_size, config.run.seed);
    wanted = wanted_samples(given, *rows, options.rows_of_run);
  });
  ProcessMesh mesh(shape, std::move(world), device);
  TeacherModel teacher(config, config.distill.teacher, mesh);
  agree(mesh.world(), [&] {
    check_vocabulary(config.distill.teacher, teacher.model().vocab_size, student.vocab_size);
  });

  // One rank makes the store; all read what it has.
  const std::string text = agree_on_text(mesh.world(), [&] {
    const TeacherHeader own{.targets = target_spec(config.distill),
                            .vocab_size = teacher.model().vocab_size,
                            .seq_len = config.batch.seq_len,
                            .tokenizer = tokenizer_name(config),
                            .teacher = teacher.folder(),
                            .model_type = teacher.model().model_type,
                            .teacher_hash = teacher_hash(teacher.folder())};
    writers = std::make_unique<TeacherWriters>(config.distill.store, work_number(config, wanted));
    const TeacherHeader stored = prepare_teacher_store(config.distill.store, own, writers->alone());
    writers->share();
    return header_text(stored);
  });
  const TeacherHeader header = parse_header(text, "header.json");
  const std::string there = agree_on_text(mesh.world(), [&] {
    const TeacherStore store(config.distill.store);
    std::string said;
    for (const SampleId& sample : wanted) said += store.has(sample) ? '1' : '0';
    return said;
  });
  const std::vector<FilePlan> shards = plan(config, *rows, wanted, there);
  if (chief)
    say(fmt::format("teacher store {}: {} of {} rows are there, {} to write in {} files", config.distill.store,
                    std::count(there.begin(), there.end(), '1'), wanted.size(), num_rows(shards), shards.size()));
  if (shards.empty()) return ExitCode::kOk;

  Lecture lecture(config, *rows, teacher, mesh);
  const int64_t micro = config.batch.micro_batch_rows, S = config.batch.seq_len;
  const auto lanes = static_cast<size_t>(shape.slices * shape.inner_dp());
  const auto lane = static_cast<size_t>(mesh.slice() * shape.inner_dp() + mesh.dp_index());
  const SampleId filler{shards[0].source.content, shards[0].rows[0]};
  const int64_t rows_left = num_rows(shards);

  // Two rounds, the second timed, say what it will take.
  const std::vector<SampleId> probe_rows(static_cast<size_t>(micro), filler);
  lecture.targets(probe_rows);
  auto begin = Clock::now();
  const std::vector<TeacherRow> probe = lecture.targets(probe_rows);
  const double round_seconds = seconds_since(begin);
  if (chief)
    say_estimate(header.targets, probe, rows_left * S, S,
                 round_seconds * static_cast<double>(rows_left) /
                     static_cast<double>(micro * static_cast<int64_t>(lanes)));
  if (options.estimate_only) return ExitCode::kOk;

  begin = Clock::now();
  auto last_said = begin;
  int64_t tokens_written = 0, bytes_written = 0;
  lecture.forward_seconds = 0;
  FileQueue queue(config.distill.store, shards, writers.get(), mesh.world());
  for (bool stopped = false;;) {
    const std::vector<size_t> turn = queue.take(stopped ? 0 : lanes);
    if (queue.all_there()) break;
    if (stopped) {
      if (chief)
        say(fmt::format("stopped by a signal after {} tokens; run the same command to go on",
                        format_count(static_cast<double>(tokens_written))));
      return ExitCode::kPreempted;
    }
    if (turn.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    // All ranks of a slice make as many rounds as the longest file of this turn needs.
    size_t most = 0;
    for (const size_t i : turn) most = std::max(most, shards[i].rows.size());
    const FilePlan* mine = lane < turn.size() ? &shards[turn[lane]] : nullptr;
    std::vector<TeacherRow> contents;
    std::exception_ptr failure;  // told at the end of the turn: the slice needs this rank until then
    for (size_t at = 0; at < most; at += static_cast<size_t>(micro)) {
      std::vector<SampleId> samples;
      for (size_t i = at; i < at + static_cast<size_t>(micro); ++i)
        samples.push_back(mine && i < mine->rows.size()
                              ? SampleId{mine->source.content, mine->rows[i]}
                              : filler);
      try {
        for (TeacherRow& row : lecture.targets(samples)) contents.push_back(std::move(row));
      } catch (const Error&) {
        failure = std::current_exception();
      }
      if (chief && seconds_since(last_said) > 5) {
        last_said = Clock::now();
        say_progress((queue.rows_there() + static_cast<int64_t>(contents.size() * turn.size())) * S,
                     rows_left * S, seconds_since(begin));
      }
    }
    std::vector<int64_t> numbers = {0, 0, stop_requested()};
    agree(mesh.world(), [&] {
      if (failure) std::rethrow_exception(failure);
      if (!mine || mesh.tp_index() != 0) return;
      contents.resize(mine->rows.size());
      numbers[0] = static_cast<int64_t>(mine->rows.size()) * S;
      numbers[1] = add_teacher_rows(config.distill.store, header, mine->source.content,
                                    mine->source.path, mine->rows, contents);
    });
    if (chief) queue.release(turn);
    at::Tensor all = at::tensor(numbers, at::TensorOptions(at::kLong));
    mesh.world().all_reduce(all);
    tokens_written += all[0].item<int64_t>();
    bytes_written += all[1].item<int64_t>();
    stopped = all[2].item<int64_t>() > 0;
  }
  if (chief && tokens_written == 0) say("other processes wrote all of it");
  if (chief && tokens_written > 0) {
    const double seconds = seconds_since(begin);
    say(fmt::format("wrote {} tokens in {} bytes ({:.1f} per token), {} tokens/s; the teacher's layers "
                    "took {:.0f} % of the time",
                    format_count(static_cast<double>(tokens_written)),
                    format_count(static_cast<double>(bytes_written)),
                    static_cast<double>(bytes_written) / static_cast<double>(tokens_written),
                    format_count(static_cast<double>(tokens_written) / seconds),
                    100 * lecture.forward_seconds / seconds));
  }
  return ExitCode::kOk;
}

}  // namespace maniple

#include "trainer/make_objective.h"

#include "checkpoint/disk.h"
#include "core/errors.h"
#include "core/files.h"
#include "data/taught_rows.h"
#include "objectives/distill_targets.h"
#include "optim/schedule.h"
#include "trainer/agreement.h"
#include "trainer/teacher_model.h"

namespace maniple {
namespace {

// The first training row of the run that the store lacks is an error now, not in the middle.
void check_rows(const Config& config, const TeacherStore& store, const RowSource& rows) {
  bool whole = true;
  for (const RowSource::Source& source : rows.sources()) {
    bool any = false;
    for (int64_t row = 0; row < source.train_rows; ++row) {
      const bool has = store.has({source.content, row});
      any |= has;
      whole &= has;
    }
    if (!any)
      throw DataError(fmt::format(
          "teacher store {} has no rows of data source {} (contents {:016x}); it was written for "
          "other data, or the data changed since; restore them, or run maniple teach with this config",
          store.folder(), source.path, source.content));
  }
  if (whole) return;
  const auto numbers = static_cast<uint64_t>(config.train.steps * config.batch.rows);
  for (uint64_t number = 0; number < numbers; ++number) {
    const SampleId sample = rows.sample_of(Split::kTrain, number);
    if (!store.has(sample)) store.read(sample);  // says what is missing
  }
}

}  // namespace

std::string tokenizer_name(const Config& config) {
  if (!config.distill.tokenizer.empty())
    return "file:" + disk::hash_text(read_file(config.distill.tokenizer, "distill.tokenizer"));
  for (const SourceConfig& source : config.data.sources)
    if (source.kind != "text") return "unknown";
  return "bytes";
}

void check_vocabulary(const std::string& teacher, int64_t teacher_size, int64_t student_size) {
  if (teacher_size == student_size) return;
  throw ConfigError(fmt::format(
      "the teacher of {} has a vocabulary of {}, model.vocab_size is {}; distillation compares the two "
      "id by id; set model.vocab_size={}, or take another teacher",
      teacher, teacher_size, student_size, teacher_size));
}

std::unique_ptr<RowSource> attach_targets(const Config& config, const ModelConfig& student,
                                          std::unique_ptr<RowSource> rows) {
  if (config.objective.kind != "distill" || config.distill.store.empty()) return rows;
  auto store = std::make_unique<TeacherStore>(config.distill.store);
  const TeacherHeader& header = store->header();
  check_vocabulary("teacher store " + store->folder(), header.vocab_size, student.vocab_size);
  if (header.seq_len != config.batch.seq_len)
    throw ConfigError(fmt::format(
        "teacher store {} has rows of {} tokens, batch.seq_len is {}; a row of the store is a row of "
        "the run; set batch.seq_len={}, or write another store",
        store->folder(), header.seq_len, config.batch.seq_len, header.seq_len));
  const std::string differs = target_difference(header.targets, config.distill);
  if (!differs.empty())
    throw ConfigError(fmt::format(
        "teacher store {} does not serve this config: {}; change the value, or write another store "
        "with maniple teach",
        store->folder(), differs));
  const std::string tokenizer = tokenizer_name(config);
  if (tokenizer != header.tokenizer)
    throw DataError(fmt::format(
        "teacher store {} was written for ids of tokenizer '{}', the data has '{}'; both must be made "
        "by one tokenizer; correct data.sources or distill.tokenizer",
        store->folder(), header.tokenizer, tokenizer));
  check_rows(config, *store, *rows);
  return attach_teacher(std::move(rows), std::move(store));
}

std::vector<std::string> target_warnings(const Config& config, const RowSource& rows) {
  if (config.objective.kind != "distill" || config.distill.variant != "topk_renorm" ||
      config.distill.store.empty())
    return {};
  DistillConfig raw = config.distill;
  raw.variant = "topk_raw";  // its W is the mass that topk_renorm divides by
  double mass = 0, targets = 0;
  for (uint64_t number = 0; number < 16; ++number) {
    const at::Tensor total = sparse_targets({rows.row(Split::kTrain, number)}, raw).total;
    mass += total.sum().item<double>();
    targets += static_cast<double>(total.count_nonzero().item<int64_t>());
  }
  mass /= std::max(1.0, targets);
  if (mass >= 0.99) return {};
  return {fmt::format("the {} largest probabilities hold {:.3f} of the teacher's mass: topk_renorm "
                      "teaches all others to be 0; prefer topk_to_label, topk_ghost or sample_counts",
                      config.distill.top_k, mass)};
}

std::unique_ptr<Objective> make_objective(const Config& config, const ModelConfig& student,
                                          ProcessMesh& mesh) {
  if (config.objective.kind != "distill") return make_causal_lm();
  std::unique_ptr<TeacherModel> teacher;
  if (config.distill.store.empty()) {
    teacher = std::make_unique<TeacherModel>(config, config.distill.teacher, mesh);
    agree(mesh.world(), [&] {
      check_vocabulary(config.distill.teacher, teacher->model().vocab_size, student.vocab_size);
    });
  }
  const auto alpha = [=](int64_t step) {
    const double lr = learning_rate(config.optim, step, config.train.steps);
    return ce_weight(config.distill, step, config.train.steps, lr, config.optim.lr);
  };
  return make_distillation(config.distill, alpha, std::move(teacher));
}

}  // namespace maniple

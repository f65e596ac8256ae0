// What a slice leaves behind: parts of checkpoints and metric rows.
#include <cmath>

#include "launch/clock.h"
#include "optim/schedule.h"
#include "parallel/tensor_hash.h"
#include "trainer/elastic_slice_impl.h"
#include "trainer/step_metrics.h"

namespace maniple {

// --- Checkpoints ---------------------------------------------------------------------------------

// Begins to write this rank's part of a checkpoint of state_step_; all members of the epoch do. The
// coordinator publishes it when all parts are there and the step is stable.
void ElasticSlice::save(bool wait) {
  report_part(/*wait=*/true);
  const auto position = static_cast<int>(mesh_.position());
  const auto size = static_cast<int>(mesh_.in_slice().size());
  const int writers = size * static_cast<int>(mesh_.num_slices());
  const int writer = static_cast<int>(mesh_.slice()) * size + position;
  const std::string attempt = fmt::format("epoch-{}-{}", decision_.incarnation, decision_.number);
  const nlohmann::json manifest = {
      {"attempt", attempt},
      {"num_writers", writers},
      {"meta", checkpoint_meta(config_, state_step_, step_.applied_steps, rows_)}};
  writer_.start(model_, writer == 0,
                [=, step = state_step_, root = config_.run.dir + "/checkpoints"](
                    const std::vector<TensorSlice>& slices) {
                  write_checkpoint_part(root, step, writer, writers, attempt, slices);
                });
  part_ = CheckpointPart{state_step_, decision_.number, manifest.dump()};
  if (wait) report_part(true);
}

// Tells the coordinator of a part that all ranks of this slice have written. One that failed is
// given up: training goes on, and the checkpoint before stays the newest.
void ElasticSlice::report_part(bool wait) {
  if (!part_ || !(wait || all_agree(writer_.done()))) return;
  bool good = true;
  try {
    writer_.finish();
  } catch (const std::exception& error) {
    good = false;
    fmt::print(stderr, "warning: no checkpoint of step {}: {}\n", part_->step, error.what());
    std::fflush(stderr);
  }
  if (all_agree(good) && leads()) control_->on(PartWritten{*part_});
  part_.reset();
}

// --- Times ---------------------------------------------------------------------------------------

// A line of the journal about what a metric row cannot hold, since it differs between slices: where
// the leader's time went since the line before, and what its slice needed.
void ElasticSlice::note_spent() {
  const PhaseSeconds seconds = step_.clock().take();
  for (size_t p = 0; p < seconds.size(); ++p) spent_[p] += seconds[p];
  if (state_step_ % config_.metrics.every && state_step_ != config_.train.steps) return;
  const JobNumbers slice = gather_job_numbers(step_, mesh_);
  const auto of = [&](Phase phase) { return spent_[static_cast<size_t>(phase)]; };
  const nlohmann::ordered_json line = {
      {"us", monotonic_now()},
      {"life", line_config_.life},
      {"event", "spent"},
      {"epoch", decision_.number},
      {"step", state_step_},
      {"seconds",
       {{"data", of(Phase::kData)},
        {"forward", of(Phase::kForward) + of(Phase::kDispatch) + of(Phase::kExperts) + of(Phase::kCombine)},
        {"backward", of(Phase::kBackward)},
        {"fold", of(Phase::kFold)},
        {"exchange", of(Phase::kExchange)},
        {"vote", of(Phase::kVote)},
        {"update", of(Phase::kUpdate)},
        {"publish", of(Phase::kPublish)},
        {"other", of(Phase::kOther)}}},
      {"max_vio_unit", slice.unit_max_vio},
      {"router_logit_max", slice.logit_max},
      {"memory_rss_mib", slice.rss_mib},
      {"memory_rss_peak_mib", slice.rss_peak_mib}};
  spent_ = {};
  std::lock_guard lock(mutex_);
  if (journal_) journal_->write(line);
}

// --- Rows ----------------------------------------------------------------------------------------

// The metric row of step state_step_: the same bytes in every slice, empty when the step is not
// reported. Nothing when other slices were needed for it and did not answer.
std::optional<MetricRow> ElasticSlice::make_row() {
  const Step step = state_step_;
  const MetricsConfig& m = config_.metrics;
  MetricRow row{step, {}};
  const bool with_fingerprint = m.fingerprint_every > 0 && step % m.fingerprint_every == 0;
  const bool last = step == config_.train.steps;
  if (step % m.every == 0 || with_fingerprint || last) {
    StepReport report =
        report_outcome(step, learning_rate(config_.optim, step, config_.train.steps),
                       step_.settle(sums_), model_, mesh_.shape());
    if (with_fingerprint) {
      report.fingerprint = state_fingerprint();
      if (!report.fingerprint) return std::nullopt;
    }
    nlohmann::ordered_json json = to_json(report);
    json.erase("tokens_per_s");  // the writer of the rows knows the time
    row.bytes = to_json_line(json);
  }
  const EvalConfig& e = config_.eval;
  const int64_t n = std::min(e.rows, rows_.num_rows(Split::kValidation));
  if (e.every > 0 && (step % e.every == 0 || last) && n > 0) {
    double loss = 0;
    if (!step_.evaluate(n, loss, [this](const auto& c) { return between(c); })) return std::nullopt;
    nlohmann::ordered_json record = {{"step", step}, {"eval_loss", loss}};
    const double bytes = rows_.bytes_per_token();
    if (bytes > 0) record["eval_bits_per_byte"] = loss / std::log(2.0) / bytes;
    row.bytes += (row.bytes.empty() ? "" : "\n") + to_json_line(record);
  }
  return row;
}

std::optional<std::string> ElasticSlice::state_fingerprint() {
  const bool first = mesh_.slice() == 0 && leads();
  const Fingerprint f = fingerprint_of_state(model_, first);
  const at::Tensor mine = words_of(f);
  at::Tensor slice = at::empty({mesh_.in_slice().size(), 2}, mine.options());
  mesh_.in_slice().all_gather(mine, slice);
  at::Tensor all = at::empty({mesh_.num_slices(), slice.size(0), 2}, mine.options());
  if (!between([&] { mesh_.across().all_gather(slice, all); })) return std::nullopt;
  return combined(all).hex();
}

}  // namespace maniple

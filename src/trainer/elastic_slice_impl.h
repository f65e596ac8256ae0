// What elastic_slice.cpp, elastic_checks.cpp, elastic_restore.cpp and elastic_report.cpp share: the rank
// of a slice through all epochs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "elastic/replay.h"
#include "elastic/reshard.h"
#include "launch/slice_control.h"
#include "links/link_set.h"
#include "metrics/jsonl_sink.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/elastic_order.h"
#include "trainer/elastic_slice.h"
#include "trainer/fault_injector.h"
#include "trainer/outliers.h"

namespace maniple {

inline constexpr double kDeadline = 3600;  // of an operation between slices; waits end by STOP

class ElasticSlice {
 public:
  ElasticSlice(const Config& config, TrainedModel& model, ProcessMesh& mesh, TrainStep& step,
               const RowSource& rows, const BlockLayout& layout, const RankControl::Config& line);
  ~ElasticSlice() { drop_links(); }
  ElasticSlice(const ElasticSlice&) = delete;
  ElasticSlice& operator=(const ElasticSlice&) = delete;
  ExitCode run();

 private:
  bool leads() const { return mesh_.position() == 0; }
  Fingerprint probe();
  Fingerprint probe_unit();
  Fingerprint over_slice(const Fingerprint& mine);
  void connect_control(const Fingerprint& build);
  std::string gather_addresses();

  // Any thread.
  void halt(EpochNumber epoch);
  void note_broken(EpochNumber epoch, SliceId peer);
  std::optional<SliceId> waits_for();

  Order next_order();
  void perform(const Order& order);
  void attempt(const Order& order);
  Health examine(const Order& order, const StepSums& mine, const StepSums& sums);
  std::string suspicion(const StepSums& sums) const;
  // Loss, gradient norm, RMS of the first layer's input, residual gain of each layer.
  static Outliers::Numbers numbers_of(const StepOutcome& outcome);
  bool gather_execution(const StepSums& mine, uint32_t rotation);
  std::string locate(uint32_t blamed);
  void blame(const std::vector<uint32_t>& members, const std::string& why);
  void report_finding(SdcFinding finding, const std::vector<uint32_t>& blamed);
  void check_copies();
  std::optional<Canary> canary(Step step) const;
  void update(const DecisionRecord& record);
  void restore(const EpochDecision& decision, bool fresh);
  void send_prepare(const Prepare& prepare);

  bool halted();
  bool all_agree(bool good);
  bool between(const std::function<void()>& communicate);
  bool open_links(const EpochDecision& decision);
  void drop_links();
  void load_start(Step committed);
  bool copy_blocks(const EpochDecision& decision);
  bool share_small_state(const EpochDecision& decision, bool fresh);
  bool gather_parameters();
  void check_seals();
  void leave_with(const std::vector<std::string>& broken, Step since);
  void check_parameters(StepSums& sums);
  void save(bool wait);
  void report_part(bool wait);
  void note_spent();
  std::optional<MetricRow> make_row();
  std::optional<std::string> state_fingerprint();
  void progress(uint32_t unit = 0);
  void note_pace(Time unit);
  void note(const char* event, EpochNumber epoch, Step step);

  const Config& config_;
  TrainedModel& model_;
  ProcessMesh& mesh_;
  TrainStep& step_;
  const RowSource& rows_;
  const RankControl::Config line_config_;
  const BlockLayout layout_;
  FaultInjector injector_;
  Progress link_progress_;
  LinkListener listener_;

  std::mutex mutex_;  // of what other threads touch
  std::condition_variable changed_;
  EpochNumber halted_ = 0;
  std::optional<SliceId> broken_;
  EpochDecision decision_;
  std::unique_ptr<LinkSet> links_;

  Step state_step_ = 0;       // of master, m, v and the router's state
  PhaseSeconds spent_{};      // of this rank in committed attempts, since the last line about them
  StepSums sums_;             // of step state_step_; not of use when that came from a checkpoint
  Step prepared_step_ = 0;    // of the attempt that was prepared last, whose sums wait for the vote
  StepSums prepared_;
  bool has_parameters_ = false;  // those of state_step_
  uint64_t parameter_seal_ = 0;  // of these, in an epoch of less than three members
  std::vector<int64_t> state_hashes_;
  Outliers outliers_{static_cast<size_t>(3 + model_.model.num_layers())};
  int64_t rotation_ = 0;                // of the units
  std::vector<Execution> executions_;   // of the suspicious step under way
  // Of this rank in the attempt under way, and in these executions; none of the first.
  std::vector<Trail::Point> trail_;
  std::vector<std::vector<Trail::Point>> trails_;
  std::string suspicion_;               // why it is one
  std::atomic<Step> step_now_ = 0;
  uint32_t attempt_now_ = 0;
  std::vector<Time> unit_times_;  // of a unit, in the last steps
  CheckpointWriter writer_;
  std::optional<CheckpointPart> part_;  // being written; the leader reports it

  std::unique_ptr<JsonlFile> journal_;     // the leader's: what this slice did, and when
  std::unique_ptr<SliceControl> control_;  // the leader's
  std::unique_ptr<RankControl> line_;      // the others'
};

}  // namespace maniple

// What the coordinator writes into the run folder of an elastic job: the metric rows and events of
// all slices, by one process. Who may write what is the coordinator's to decide (elastic/rows.h).
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "core/files.h"
#include "elastic/messages.h"
#include "metrics/jsonl_sink.h"

namespace maniple {

class RunWriter {
 public:
  // Takes the lock of the run folder and creates `<dir>/elastic`. Throws IoError.
  explicit RunWriter(const std::string& dir);
  ~RunWriter();
  RunWriter(const RunWriter&) = delete;
  RunWriter& operator=(const RunWriter&) = delete;

  // Last step whose row was written or passed over. It is kept beside the metrics, since a step may
  // have nothing to write. Survives the death of the process, not that of its host.
  Step rows_written() const { return rows_written_; }
  // The row of step rows_written() + 1. Bytes: lines of JSON objects with the step's number, or
  // empty. Others are not written: false. A step's own record (it has a loss) gets what one process
  // alone can say: tokens_per_s since the record before, then `extra`. Throws IoError.
  bool write_row(const MetricRow& row, const nlohmann::ordered_json& extra);
  // The records of the last call, as written.
  const std::vector<nlohmann::ordered_json>& last_records() const { return records_; }
  // Removes the rows after this step.
  void drop_rows(Step after);
  void write_event(const std::string& event, const std::string& text);

 private:
  void note_rows(Step step);

  const std::string dir_;
  RunLock lock_;
  std::unique_ptr<JsonlFile> metrics_;
  std::unique_ptr<EventLog> events_;
  int cursor_ = -1;
  std::vector<nlohmann::ordered_json> records_;
  std::chrono::steady_clock::time_point last_record_ = std::chrono::steady_clock::now();
  Step last_step_ = 0;  // of a record
  Step rows_written_ = 0;
};

// Where the coordinator of a run folder keeps its decisions.
std::string decision_log_path(const std::string& run_dir);

}  // namespace maniple

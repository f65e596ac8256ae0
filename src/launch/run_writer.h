// What the coordinator writes into the run folder of an elastic job: the metric rows and events of
// all slices, by one process. Who may write what is the coordinator's to decide (elastic/rows.h).
#pragma once

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
  // The row of step rows_written() + 1. Bytes: one line of a JSON object with the step's number,
  // or empty. Others are not written: false. Throws IoError.
  bool write_row(const Row& row);
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
  Step rows_written_ = 0;
};

// Where the coordinator of a run folder keeps its decisions.
std::string decision_log_path(const std::string& run_dir);

}  // namespace maniple

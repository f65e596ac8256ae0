// Scalars for TensorBoard: tensorboard --logdir RUN/tb. Each start of a run writes a file of its
// own, which begins with the mark that points of this step and later ones in earlier files are
// obsolete: a resumed run shows one line. Format: event_format.h.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "metrics/step_report.h"

namespace maniple {

class TensorboardSink {
 public:
  using Time = std::chrono::system_clock::time_point;

  // Creates `folder` and a new file in it. Throws IoError.
  TensorboardSink(const std::string& folder, Time now, int64_t first_step);
  ~TensorboardSink();
  TensorboardSink(const TensorboardSink&) = delete;
  TensorboardSink& operator=(const TensorboardSink&) = delete;

  // Every number of the report under its key of metrics.jsonl; entries of a list under
  // key/<index>. Numbers that are not finite are left out. Throws IoError.
  void write(Time time, const StepReport& report);
  // The numbers of another record, which has a key "step".
  void write(Time time, const nlohmann::ordered_json& record);
  const std::string& path() const { return path_; }

 private:
  void append(const std::string& bytes);

  std::string path_;
  int fd_ = -1;
};

}  // namespace maniple

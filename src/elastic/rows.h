// The coordinator is the one writer of metric rows: each step's row is written once and in order,
// whoever sends it and however often (spec/elastic.md section 2).
#pragma once

#include <cstdint>
#include <vector>

#include "elastic/messages.h"

namespace maniple {

class RowBook {
 public:
  explicit RowBook(Step written = 0) : written_(written) {}

  struct Result {
    std::vector<MetricRow> write;       // the next rows, in order
    std::vector<Step> differing;  // rows that came twice with different bytes
  };
  // Rows by step, of a slice whose rows count up to step `limit`. Later ones and those behind a gap
  // are ignored: their owner sends them again.
  Result accept(const std::vector<MetricRow>& rows, Step limit);

  // A checkpoint of `step` was loaded: the next row is that of step + 1.
  void restart_after(Step step);

  Step written() const { return written_; }

  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.written_, s.digests_);
  }

 private:
  static constexpr size_t kMemory = 64;  // rows whose digest is kept to compare repetitions

  Step written_ = 0;
  std::vector<uint64_t> digests_;  // of the last rows written, the newest last
};

}  // namespace maniple

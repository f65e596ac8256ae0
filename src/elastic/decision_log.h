// The coordinator's append-only log (docs/formats.md): one checksummed frame per record, durable
// before append() returns. A crash can leave one torn record at the end; it was never acted upon
// and is removed when the log is opened again.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "elastic/history.h"

namespace maniple {

class DecisionLog {
 public:
  // Opens or creates the log and takes its lock, which the kernel releases however the owner dies.
  // Throws IoError when the file cannot be opened, read, locked (another coordinator runs) or
  // repaired, DataError when it is no log, is of another version or is corrupt before its last
  // record: what follows a damaged record cannot be trusted, and decisions must not be forgotten.
  explicit DecisionLog(const std::string& path);
  ~DecisionLog();
  DecisionLog(const DecisionLog&) = delete;
  DecisionLog& operator=(const DecisionLog&) = delete;

  // The records that were there when the log was opened, and what they add up to.
  const std::vector<LogRecord>& records() const { return records_; }
  History history() const;

  // Writes the record and syncs it. Space is allocated ahead, so that a full disk does not stop
  // decisions for a while. Throws IoError; after that the log takes no more records, since nobody
  // knows what the disk holds: the process has to end.
  void append(const LogRecord& record);

 private:
  void load();
  void reserve(int64_t bytes);

  std::string path_;
  int fd_ = -1;
  int64_t end_ = 0;       // of the last record
  int64_t reserved_ = 0;  // allocated, zeros after end_
  bool failed_ = false;
  std::vector<LogRecord> records_;
};

}  // namespace maniple

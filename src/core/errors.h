// The two kinds of failure. The user's or the environment's are exceptions derived from Error and
// carry the exit code of the program; the programmer's are INVARIANT violations.
// A message is one line: what was attempted; the values seen; the rule; the fix.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace maniple {

enum class ExitCode : int {
  kOk = 0,
  kUsage = 64,      // command line
  kData = 65,       // contents of data, weights, checkpoints, ids
  kNoInput = 66,    // a file that the user named does not exist
  kInternal = 70,   // a broken invariant
  kIo = 74,         // an output that cannot be written
  kPreempted = 75,  // stopped by a signal after a checkpoint: requeue
  kConfig = 78,     // values of the config, the mesh
  kUnhealthy = 79,  // a device that computes wrongly
  kComm = 80,       // communication
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

#define MANIPLE_ERROR(Name, Code)                                                     \
  class Name : public Error {                                                         \
   public:                                                                            \
    explicit Name(const std::string& message) : Error(ExitCode::Code, message) {}     \
  }
MANIPLE_ERROR(UsageError, kUsage);
MANIPLE_ERROR(DataError, kData);
MANIPLE_ERROR(CheckpointError, kData);
MANIPLE_ERROR(NoInputError, kNoInput);
MANIPLE_ERROR(InternalError, kInternal);
MANIPLE_ERROR(IoError, kIo);
MANIPLE_ERROR(ConfigError, kConfig);
MANIPLE_ERROR(CommError, kComm);
#undef MANIPLE_ERROR

}  // namespace maniple

// A rule that only a defect of this program can break. Always checked.
#define MANIPLE_INVARIANT(condition, ...)                                                     \
  do {                                                                                        \
    if (!(condition))                                                                         \
      throw ::maniple::InternalError(fmt::format("{}:{}: broken invariant {}: {}", __FILE__, \
                                                 __LINE__, #condition, fmt::format(__VA_ARGS__))); \
  } while (false)

// Errors that end a job as one: what fails on any rank ends every rank with the same exit code and
// one message, without the transport's abort text.
#pragma once

#include <functional>

#include "core/errors.h"
#include "parallel/communicator.h"

namespace maniple {

// Thrown on every rank when an agreed section failed on at least one; only one of them prints.
class AgreedError : public Error {
 public:
  AgreedError(ExitCode code, const std::string& message, bool speaks)
      : Error(code, message), speaks(speaks) {}
  const bool speaks;
};

// Runs `body` on every rank; if it threw an Error anywhere, throws AgreedError everywhere with the
// code of the lowest rank that failed, which is the one that speaks. `body` must not communicate
// after a point where it may throw on some ranks only. Collective over world.
void agree(Communicator& world, const std::function<void()>& body);

// Rank 0's text on every rank. Collective.
std::string broadcast_text(std::string text, Communicator& comm);

// Runs `body` on rank 0 alone, as agree does, and gives every rank its result: for work whose
// verdict all need and one can reach, as hashing a checkpoint. Collective over world.
std::string agree_on_text(Communicator& world, const std::function<std::string()>& body);

}  // namespace maniple

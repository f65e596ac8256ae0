#include "links/operation.h"

#include "core/errors.h"

namespace maniple {

Operation::Operation(std::vector<int64_t> to_send, std::vector<int64_t> to_receive)
    : to_send_(std::move(to_send)),
      to_receive_(std::move(to_receive)),
      sent_(to_send_.size()),
      received_(to_receive_.size()) {
  MANIPLE_INVARIANT(to_send_.size() == to_receive_.size(), "{} and {} peers", to_send_.size(),
                    to_receive_.size());
  for (const auto* pieces : {&to_send_, &to_receive_})
    for (int64_t n : *pieces) {
      MANIPLE_INVARIANT(n >= 0, "{} pieces", n);
      open_ += n > 0;
    }
}

}  // namespace maniple

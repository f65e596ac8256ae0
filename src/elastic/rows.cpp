#include "elastic/rows.h"

#include <algorithm>

#include "core/random.h"

namespace maniple {

RowBook::Result RowBook::accept(const std::vector<MetricRow>& rows, Step limit) {
  Result result;
  for (const MetricRow& row : rows) {
    if (row.step > limit || row.step > written_ + 1) break;
    const uint64_t digest = hash_name(row.bytes);
    if (row.step == written_ + 1) {
      ++written_;
      digests_.push_back(digest);
      if (digests_.size() > kMemory) digests_.erase(digests_.begin());
      result.write.push_back(row);
    } else {
      const int64_t age = written_ - row.step;
      const int64_t kept = static_cast<int64_t>(digests_.size());
      if (age < kept && digests_[static_cast<size_t>(kept - 1 - age)] != digest)
        result.differing.push_back(row.step);
    }
  }
  return result;
}

void RowBook::restart_after(Step step) {
  for (; written_ > step; --written_)
    if (!digests_.empty()) digests_.pop_back();
  if (written_ < step) digests_.clear();
  written_ = step;
}

}  // namespace maniple

#include "data/prefetcher.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>

#include "core/errors.h"

namespace maniple {
namespace {

Prefetcher::Rows rows_of(uint64_t k) {
  Row row;
  row.input = {static_cast<int32_t>(k)};
  return {row};
}

int32_t value(const Prefetcher::Batch& batch) { return batch.rows.at(0).input.at(0); }

TEST(Prefetcher, ReturnsEveryBatchInOrder) {
  Prefetcher batches(rows_of, 5, 3);
  for (uint64_t k = 5; k < 500; ++k) EXPECT_EQ(value(batches.get(k)), static_cast<int32_t>(k));
}

TEST(Prefetcher, JumpsToAnyBatchAndGoesOnFromThere) {
  Prefetcher batches(rows_of, 0, 2);
  for (int32_t k : {0, 1, 2, 1, 2, 7, 8, 100, 0, 0, 1})
    EXPECT_EQ(value(batches.get(static_cast<uint64_t>(k))), k);
}

TEST(Prefetcher, LoadsAheadOfTheReaderButNoFurtherThanItsDepth) {
  std::atomic<uint64_t> loads = 0;
  std::promise<void> third;
  Prefetcher batches(
      [&](uint64_t k) {
        if (++loads == 3) third.set_value();
        return rows_of(k);
      },
      0, 2);
  batches.get(0);             // makes room for batch 2,
  third.get_future().wait();  // which is loaded without being asked for
  EXPECT_LE(loads, 3u);
  batches.get(1);
  batches.get(2);
  EXPECT_LE(loads, 5u);
}

TEST(Prefetcher, ReportsTheWait) {
  std::promise<void> gate;
  auto opened = gate.get_future().share();
  Prefetcher batches(
      [&](uint64_t k) {
        if (k == 1) opened.wait();
        return rows_of(k);
      },
      0, 1);
  batches.get(0);
  auto batch = std::async(std::launch::async, [&] { return batches.get(1); });
  EXPECT_EQ(batch.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  gate.set_value();
  EXPECT_GT(batch.get().seconds_waited, 0);
}

TEST(Prefetcher, ExceptionsReachTheCallerAtTheirBatchAndCanBeRetried) {
  std::atomic<int> failures = 2;
  Prefetcher batches(
      [&](uint64_t k) {
        if (k == 3 && failures-- > 0) throw DataError("batch 3 is bad");
        return rows_of(k);
      },
      0, 8);
  for (uint64_t k = 0; k < 3; ++k) batches.get(k);
  EXPECT_THROW(batches.get(3), DataError);
  EXPECT_THROW(batches.get(3), DataError);
  EXPECT_EQ(value(batches.get(3)), 3);
  EXPECT_EQ(value(batches.get(4)), 4);
}

TEST(Prefetcher, CanBeDestroyedAtAnyTime) {
  for (int i = 0; i < 200; ++i) {
    Prefetcher batches(rows_of, 0, 4);
    if (i % 2) batches.get(static_cast<uint64_t>(i % 3));
  }
}

}  // namespace
}  // namespace maniple

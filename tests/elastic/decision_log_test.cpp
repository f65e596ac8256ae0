#include "elastic/decision_log.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

class Log : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/decision_log_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = dir_ + "/decisions.log";
  }
  void TearDown() override { fs::remove_all(dir_); }

  static std::vector<LogRecord> some_records() {
    EpochDecision d;
    d.incarnation = 1;
    d.number = d.lineage = 1;
    d.members = {{0, 1, 1}, {1, 1, 2}};
    d.addresses = {"a:1", "b:1"};
    d.holds = {{}, {}};
    return {StartedRecord{1},      LaunchRecord{0, 1, 0},
            LaunchRecord{1, 1, 0}, EpochRecord{d},
            RowsDroppedRecord{},   PublishedRecord{40},
            WishRecord{2, true},   PausedRecord{47, std::nullopt, "pause"},
            StartedRecord{2}};
  }
  void write(const std::vector<LogRecord>& records) {
    DecisionLog log(path_);
    for (const LogRecord& r : records) log.append(r);
  }
  // The file without the zeros that were allocated ahead.
  std::string written_bytes() {
    std::string bytes = read_file(path_);
    // Each record ends with a frame; cut behind the last.
    size_t at = 8;
    for (FrameView f = read_frame(std::string_view(bytes).substr(at));
         f.state == FrameState::kWhole; f = read_frame(std::string_view(bytes).substr(at)))
      at += f.size;
    return bytes.substr(0, at);
  }
  void replace(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }
  static std::string encoded(const std::vector<LogRecord>& records) {
    std::string all;
    for (const LogRecord& r : records) all += encode_record(r);
    return all;
  }

  std::string dir_, path_;
};

TEST_F(Log, ComesBackAsItWasWritten) {
  write(some_records());
  DecisionLog log(path_);
  EXPECT_EQ(encoded(log.records()), encoded(some_records()));
  const History history = log.history();
  EXPECT_EQ(history.incarnation, 2u);
  EXPECT_EQ(history.number(), 1u);
  EXPECT_EQ(history.committed, 47);
  EXPECT_EQ(history.published, 40);
  EXPECT_TRUE(history.paused && history.hold);
}

TEST_F(Log, CutAnywhereItKeepsTheWholeRecordsAndGoesOn) {
  const auto records = some_records();
  write(records);
  const std::string bytes = written_bytes();
  // Each cut costs four syncs; zeros behind the cut are tried at every fifth.
  std::vector<size_t> ends = {8};
  for (const LogRecord& r : records)
    ends.push_back(ends.back() + kFrameHeader + encode_record(r).size());
  ASSERT_EQ(ends.back(), bytes.size());
  for (size_t cut = 0; cut <= bytes.size(); ++cut)
    for (const size_t zeros : {0, 100}) {  // as with and without space allocated ahead
      if (zeros > 0 && cut % 5 != 0) continue;
      const std::string file = bytes.substr(0, cut) + std::string(zeros, '\0');
      replace(file);
      // Zeros may complete a record that ends with zeros.
      const auto count =
          static_cast<size_t>(std::count_if(ends.begin() + 1, ends.end(), [&](size_t end) {
            return std::string_view(file).starts_with(std::string_view(bytes).substr(0, end));
          }));
      {
        if (cut < 8 && zeros > 0 && cut + zeros >= 8)
          continue;  // the magic is written before space is taken
        DecisionLog log(path_);
        EXPECT_EQ(encoded(log.records()),
                  encoded({records.begin(), records.begin() + static_cast<int64_t>(count)}))
            << cut;
        log.append(StartedRecord{9});
      }
      DecisionLog again(path_);
      EXPECT_EQ(again.records().size(), count + 1);
      EXPECT_EQ(again.history().incarnation, 9u);
    }
}

TEST_F(Log, ADamagedRecordInTheMiddleIsRefused) {
  write(some_records());
  const std::string bytes = written_bytes();
  const size_t last = kFrameHeader + encode_record(some_records().back()).size();
  for (size_t at = 0; at < bytes.size() - last; ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    replace(damaged);
    EXPECT_THROW(DecisionLog{path_}, DataError) << at;
  }
}

TEST_F(Log, ASecondCoordinatorIsKeptOut) {
  DecisionLog log(path_);
  EXPECT_THROW(DecisionLog{path_}, IoError);
}

TEST_F(Log, OtherFilesAreRefused) {
  replace("{\"step\": 1}\n");
  EXPECT_THROW(DecisionLog{path_}, DataError);
  EXPECT_THROW(DecisionLog{dir_ + "/none/decisions.log"}, IoError);
}

}  // namespace
}  // namespace maniple

#include "metrics/tensorboard_sink.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"
#include "metrics/event_format.h"

namespace maniple {
namespace {

std::string bytes_of(std::initializer_list<int> values) {
  std::string out;
  for (int v : values) out += static_cast<char>(v);
  return out;
}

TEST(EventFormat, ChecksumsAreThoseOfTheStandard) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  // (crc >> 15 | crc << 17) + 0xa282ead8 by hand for 0xe3069283.
  EXPECT_EQ(masked_crc32c("123456789"), 0xc78ab0e5u);
}

// The bytes that protobuf's own encoder gives: fields in order, defaults left out.
TEST(EventFormat, BytesOfAMessage) {
  Event event;
  event.wall_time = 1;
  event.step = 300;
  event.scalars = {{"a", 0.5f}};
  EXPECT_EQ(encode_event(event),
            bytes_of({0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 0xac, 0x02,  // wall_time, step
                      0x2a, 0x0a, 0x0a, 0x08, 0x0a, 0x01, 'a', 0x15, 0, 0, 0, 0x3f}));
}

TEST(EventFormat, ReadsBackWhatItWrites) {
  Event first, start, step;
  first.wall_time = 1.25;
  first.file_version = kEventVersion;
  start.step = 7;
  start.session_start = true;
  step.step = int64_t{1} << 40;
  step.scalars = {{"loss", 2.5f}, {std::string(200, 'x'), -1e30f}, {"", 0.0f}};
  std::string file;
  for (const Event& e : {first, start, step}) file += frame_record(encode_event(e));
  EXPECT_EQ(decode_events(file, "test"), (std::vector<Event>{first, start, step}));
}

TEST(EventFormat, DamageIsRefused) {
  Event event;
  event.step = 3;
  event.scalars = {{"loss", 1.0f}};
  const std::string file = frame_record(encode_event(event));
  for (size_t i = 0; i < file.size(); ++i) {
    std::string damaged = file;
    damaged[i] ^= 4;
    EXPECT_THROW(decode_events(damaged, "test"), DataError) << "byte " << i;
    if (i > 0) {
      EXPECT_THROW(decode_events(file.substr(0, i), "test"), DataError) << i;
    }
  }
}

TEST(TensorboardSink, WritesReportsAndMarksAResume) {
  const std::string folder = testing::TempDir() + "/tensorboard_sink_test";
  std::filesystem::remove_all(folder);
  const auto now = std::chrono::system_clock::time_point(std::chrono::seconds(1000));
  StepReport report;
  report.step = 5;
  report.loss = 2;
  report.grad_norm = std::nan("");
  report.extra = {{"load_cv", 0.25}};
  report.lists = {{"aux_loss_layers", {1, 1.5}}};
  std::string path;
  {
    TensorboardSink sink(folder, now, 5);
    path = sink.path();
    sink.write(now, report);
    sink.write(now, nlohmann::ordered_json{{"step", 6}, {"eval_loss", 3.0}});
  }
  EXPECT_NE(path.find("tfevents"), path.npos);
  const auto events = decode_events(read_file(path), path);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].file_version, kEventVersion);
  EXPECT_TRUE(events[1].session_start);
  EXPECT_EQ(events[1].step, 5);
  EXPECT_EQ(events[2].step, 5);
  EXPECT_EQ(events[2].wall_time, 1000);
  const std::vector<std::pair<std::string, float>> expected = {
      {"loss", 2.0f},         {"lr", 0.0f},      {"tokens", 0.0f},
      {"tokens_per_s", 0.0f}, {"aux_loss", 0.0f}, {"z_loss", 0.0f},
      {"load_cv", 0.25f},     {"aux_loss_layers/0", 1.0f}, {"aux_loss_layers/1", 1.5f}};
  EXPECT_EQ(events[2].scalars, expected);
  EXPECT_EQ(events[3].scalars, (std::vector<std::pair<std::string, float>>{{"eval_loss", 3.0f}}));
  std::filesystem::remove_all(folder);
}

TEST(TensorboardSink, NamesWhatItCannotWrite) {
  const std::string file = testing::TempDir() + "/tensorboard_sink_file";
  write_file_atomic(file, "x");
  EXPECT_THROW(TensorboardSink(file + "/tb", {}, 1), IoError);
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace maniple

#include "metrics/jsonl_sink.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

using Json = nlohmann::ordered_json;

class Jsonl : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/jsonl_test_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_;
};

StepReport exact_report(int64_t step) {
  StepReport r;
  r.step = step, r.loss = 0.1 + 0.2, r.grad_norm = 1, r.lr = 3e-4, r.tokens = 2048;
  r.tokens_per_s = 1e6, r.aux_loss = -0.0;
  return r;
}

TEST_F(Jsonl, AStepIsOneLineWithFixedKeys) {
  JsonlSink sink(path_);
  StepReport r = exact_report(1);
  r.z_loss = NAN;
  r.fingerprint = "00ff";
  r.extra = {{"load_max", 1.25}, {"load_min", INFINITY}};
  sink.write(r);
  // Flushed: visible while the sink is open.
  EXPECT_EQ(read_file(path_),
            "{\"step\":1,\"loss\":0.30000000000000004,\"grad_norm\":1.0,\"lr\":3.0e-04,"
            "\"tokens\":2048,\"tokens_per_s\":1.0e+06,\"aux_loss\":-0.0,\"z_loss\":null,"
            "\"state_fingerprint\":\"00ff\",\"load_max\":1.25,\"load_min\":null}\n");
  r.extra = {{"loss", 1.0}};
  EXPECT_THROW(sink.write(r), InternalError);
  sink.write(Json{{"step", 1}, {"eval_loss", 2.5}});
  EXPECT_THROW(sink.write(Json{{"loss", 1}}), InternalError);
}

TEST_F(Jsonl, DoublesReadBackBitForBit) {
  for (double x : {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e22, 123456789.125}) {
    const double y = Json::parse(to_json_line(x)).get<double>();
    EXPECT_EQ(std::memcmp(&x, &y, sizeof x), 0) << to_json_line(x);
  }
}

TEST_F(Jsonl, TextsAreEscaped) {
  EXPECT_EQ(to_json_line(Json{{"a\"\n", "é\x01"}}), "{\"a\\\"\\n\":\"é\\u0001\"}");
  EXPECT_TRUE(Json::accept(to_json_line(Json("\xff"))));
  EXPECT_EQ(to_json_line(Json::parse("[{}, [], true, null, -3]")), "[{},[],true,null,-3]");
}

TEST_F(Jsonl, OpeningAgainAppendsAndRemovesAnUnfinishedLine) {
  { JsonlSink(path_).write(exact_report(1)); }
  const std::string one = read_file(path_);
  std::ofstream(path_, std::ios::app) << "{\"step\":2,\"lo" << std::string(10000, 'x');
  { JsonlSink(path_).write(exact_report(1)); }
  EXPECT_EQ(read_file(path_), one + one);
  std::ofstream(path_, std::ios::trunc) << "{\"st";
  { JsonlSink(path_).write(exact_report(1)); }
  EXPECT_EQ(read_file(path_), one);
}

TEST_F(Jsonl, FailedWritesAreIoErrors) {
  EXPECT_THROW(JsonlSink(path_ + "/none/metrics.jsonl"), IoError);
  JsonlSink full("/dev/full");
  try {
    full.write(exact_report(1));
    FAIL();
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("No space left"), std::string::npos) << e.what();
  }
}

TEST_F(Jsonl, ResumeDropsLaterSteps) {
  drop_steps_after(path_, 3);
  EXPECT_FALSE(std::filesystem::exists(path_));
  {
    JsonlSink sink(path_);
    for (int64_t step : {1, 2, 3}) sink.write(exact_report(step));
  }
  const std::string three = read_file(path_);
  {
    JsonlSink sink(path_);
    sink.write(exact_report(4));
    sink.write(Json{{"step", 4}, {"eval_loss", 1.0}});
  }
  std::ofstream(path_, std::ios::app) << "garbage\n{\"step\":5";
  drop_steps_after(path_, 3);
  EXPECT_EQ(read_file(path_), three);
}

TEST_F(Jsonl, EventsCarryTimeAndName) {
  EventLog log(path_);
  const auto time = std::chrono::system_clock::time_point(std::chrono::milliseconds(1767225600042));
  log.write(time, "checkpoint", {{"step", 3}});
  log.write(time, "start");
  EXPECT_EQ(read_file(path_),
            "{\"time\":\"2026-01-01T00:00:00.042Z\",\"event\":\"checkpoint\",\"step\":3}\n"
            "{\"time\":\"2026-01-01T00:00:00.042Z\",\"event\":\"start\"}\n");
}

}  // namespace
}  // namespace maniple

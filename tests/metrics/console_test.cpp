#include "metrics/console.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

namespace maniple {
namespace {

StepReport report(int64_t step) {
  StepReport r;
  r.step = step, r.loss = 3.25, r.grad_norm = 0.5, r.lr = 3e-4, r.tokens = 1000;
  r.tokens_per_s = 500, r.aux_loss = 1, r.z_loss = 0.25;
  return r;
}

std::string output_of(const ConsoleStyle& style, int64_t num_steps, int64_t last) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* file = open_memstream(&text, &size);
  {
    Console console(file, style, num_steps);
    for (int64_t step = 1; step <= last; ++step) console.step(report(step));
    console.message("done");
  }
  std::fclose(file);
  std::string output(text, size);
  std::free(text);
  return output;
}

TEST(Console, CountsAndDurations) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(999.9), "1.00k");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(45.6e6), "45.6M");
  EXPECT_EQ(format_duration(3723), "01:02:03");
  EXPECT_EQ(format_duration(2 * 86400 + 3723), "2d 01:02:03");
  EXPECT_EQ(format_duration(-1), "--:--:--");
}

TEST(Console, LinesOfStepsAreAligned) {
  const std::string a = format_step(report(9), 1000), b = format_step(report(10), 1000);
  EXPECT_EQ(a.size(), b.size());
  EXPECT_EQ(a,
            "step    9/1000  loss   3.2500  grad      0.5  lr 3.000e-04     500 tok/s  aux        1"
            "  z     0.25");
}

TEST(Console, WithoutATerminalOnlyLinesArePrinted) {
  EXPECT_EQ(output_of({}, 3, 2),
            format_step(report(1), 3) + "\n" + format_step(report(2), 3) + "\ndone\n");
}

TEST(Console, OnATerminalTheBarStaysBelow) {
  const ConsoleStyle style{.terminal = true, .unicode = false, .width = 80};
  const std::string output = output_of(style, 4, 2);
  EXPECT_NE(output.find("done\n " + format_bar(report(2), 4, 4, style).substr(1)), output.npos)
      << output;
  EXPECT_NE(output.find("ETA 00:00:04"), output.npos) << output;
  EXPECT_TRUE(output.ends_with("\r\x1b[K"));
  for (int width : {1, 10, 40, 80, 300}) {
    const std::string bar = format_bar(report(2), 4, 4, {.terminal = true, .width = width});
    EXPECT_LE(bar.size(), static_cast<size_t>(width));
  }
}

TEST(Console, TablesAreRectangles) {
  const std::vector<TableSection> sections = {
      {"model", {{"preset", "house"}, {"parameters", "12.3M"}}},
      {"a title longer than all of the rows below", {{"tp", "2"}}},
      {"", {}}};
  for (bool unicode : {false, true}) {
    const std::string table = format_table(sections, {.unicode = unicode, .width = 60});
    size_t begin = 0, width = 0;
    while (begin < table.size()) {
      const size_t end = table.find('\n', begin);
      const auto line = table.substr(begin, end - begin);
      const auto columns = static_cast<size_t>(
          std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; }));
      if (width == 0) width = columns;
      EXPECT_EQ(columns, width) << table;
      begin = end + 1;
    }
    EXPECT_LE(width, 60u);
  }
  EXPECT_EQ(format_table({{"run", {{"seed", "1"}}}}, {}),
            "+- run ---+\n| seed  1 |\n+---------+\n");
}

TEST(Console, LongValuesAreCut) {
  const std::string table = format_table({{"t", {{"n", std::string(200, 'v')}}}}, {.width = 50});
  EXPECT_EQ(table.find('\n'), 50u);
  EXPECT_NE(table.find("v... |"), table.npos) << table;
}

}  // namespace
}  // namespace maniple

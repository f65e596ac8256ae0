#include "metrics/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace maniple {
namespace {

// Code points stand for columns: good enough for the names and numbers of a run.
size_t columns(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string cut(const std::string& text, size_t width) {
  if (columns(text) <= width) return text;
  size_t seen = 0, end = 0;
  const size_t keep = width > 3 ? width - 3 : 0;
  for (; end < text.size(); ++end) {
    if ((text[end] & 0xC0) != 0x80 && seen++ == keep) break;
  }
  return text.substr(0, end) + std::string(std::min<size_t>(3, width), '.');
}

std::string repeat(const std::string& unit, size_t n) {
  std::string text;
  for (size_t i = 0; i < n; ++i) text += unit;
  return text;
}

std::string padded(const std::string& text, size_t width) {
  return text + std::string(width - std::min(width, columns(text)), ' ');
}

int digits(int64_t number) { return static_cast<int>(std::to_string(number).size()); }

}  // namespace

ConsoleStyle detect_console_style(std::FILE* file) {
  ConsoleStyle style;
  const int fd = ::fileno(file);
  style.terminal = fd >= 0 && ::isatty(fd);
  winsize size{};
  if (style.terminal && ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    style.width = size.ws_col;
  }
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (!value || !*value) continue;
    const std::string locale = value;
    style.unicode = locale.find("UTF-8") != locale.npos || locale.find("utf8") != locale.npos;
    break;
  }
  return style;
}

std::string format_table(const std::vector<TableSection>& sections, const ConsoleStyle& style) {
  size_t names = 0, values = 0, titles = 0;
  for (const TableSection& section : sections) {
    titles = std::max(titles, columns(section.title));
    for (const auto& [name, value] : section.rows) {
      names = std::max(names, columns(name));
      values = std::max(values, columns(value));
    }
  }
  // A row is "| name  value |": six columns besides the two texts.
  const size_t width = static_cast<size_t>(std::max(style.width, 40));
  names = std::min(names, width / 2);
  values = std::max(values, titles + 4 > names + 2 ? titles + 2 - names : size_t{0});
  values = std::min(values, width - 6 - names);
  const size_t inner = names + values + 4;

  const bool u = style.unicode;
  const std::string side = u ? "│" : "|", dash = u ? "─" : "-";
  std::string text;
  for (size_t i = 0; i < sections.size(); ++i) {
    const std::string left = u ? (i == 0 ? "╭" : "├") : "+", right = u ? (i == 0 ? "╮" : "┤") : "+";
    const std::string title = cut(sections[i].title, inner - 3);
    text += fmt::format("{}{} {} {}{}\n", left, dash, title,
                        repeat(dash, inner - 3 - columns(title)), right);
    for (const auto& [name, value] : sections[i].rows) {
      text += fmt::format("{} {}  {} {}\n", side, padded(cut(name, names), names),
                          padded(cut(value, values), values), side);
    }
  }
  if (!sections.empty()) {
    text += fmt::format("{}{}{}\n", u ? "╰" : "+", repeat(dash, inner), u ? "╯" : "+");
  }
  return text;
}

std::string format_count(double value) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  static const char* const kUnits[] = {"", "k", "M", "G", "T", "P"};
  size_t unit = 0;
  // 999.5 would print as 1000: it belongs to the next unit.
  while (std::abs(value) >= 999.5 && unit + 1 < std::size(kUnits)) value /= 1000, ++unit;
  if (unit == 0 && value == std::floor(value)) return fmt::format("{:.0f}", value);
  const double size = std::abs(value);
  const int decimals = size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f}{}", value, decimals, kUnits[unit]);
}

std::string format_duration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e10) return "--:--:--";
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  const std::string clock =
      fmt::format("{:02}:{:02}:{:02}", whole / 3600 % 24, whole / 60 % 60, whole % 60);
  return whole < 86400 ? clock : fmt::format("{}d {}", whole / 86400, clock);
}

std::string format_step(const StepReport& r, int64_t num_steps) {
  std::string line = fmt::format(
      "step {:>{}}/{}  loss {:>8.4f}  grad {:>8.3g}  lr {:>9.3e}  {:>6} tok/s  aux {:>8.3g}  z "
      "{:>8.3g}",
      r.step, digits(num_steps), num_steps, r.loss, r.grad_norm, r.lr, format_count(r.tokens_per_s),
      r.aux_loss, r.z_loss);
  for (const auto& [name, value] : r.extra) line += fmt::format("  {} {:<8.4g}", name, value);
  if (r.fingerprint) line += "  fp " + *r.fingerprint;
  return line.substr(0, line.find_last_not_of(' ') + 1);
}

std::string format_bar(const StepReport& r, int64_t num_steps, double eta_seconds,
                       const ConsoleStyle& style) {
  const double share =
      num_steps > 0
          ? std::clamp(static_cast<double>(r.step) / static_cast<double>(num_steps), 0.0, 1.0)
          : 0;
  const std::string left = fmt::format("{:>3.0f}% ", std::floor(100 * share));
  const std::string right =
      fmt::format(" {}/{}  loss {:.4f}  {} tok/s  ETA {}", r.step, num_steps, r.loss,
                  format_count(r.tokens_per_s), format_duration(eta_seconds));
  const auto width = static_cast<int64_t>(std::max(style.width, 1));
  const int64_t room = width - static_cast<int64_t>(left.size() + right.size()) - 2;
  const int64_t cells = std::clamp<int64_t>(room, 0, 40);
  const auto full = static_cast<size_t>(share * static_cast<double>(cells));
  const auto rest = static_cast<size_t>(cells) - full;
  const std::string bar = style.unicode ? repeat("█", full) + repeat("░", rest)
                                        : std::string(full, '#') + std::string(rest, '.');
  return cut(fmt::format("{}[{}]{}", left, bar, right), static_cast<size_t>(width));
}

Console::Console(std::FILE* file, const ConsoleStyle& style, int64_t num_steps)
    : file_(file), style_(style), num_steps_(num_steps) {}

Console::~Console() {
  bar_.clear();
  print("");
}

void Console::print(const std::string& text) {
  const char* erase = style_.terminal ? "\r\x1b[K" : "";
  const std::string output = erase + text + bar_;
  std::fwrite(output.data(), 1, output.size(), file_);
  std::fflush(file_);
}

void Console::table(const std::vector<TableSection>& sections) {
  print(format_table(sections, style_));
}

void Console::message(const std::string& text) { print(text + "\n"); }

void Console::step(const StepReport& report) {
  if (report.tokens_per_s > 0 && std::isfinite(report.tokens_per_s)) {
    const double seconds = static_cast<double>(report.tokens) / report.tokens_per_s;
    seconds_per_step_ = seconds_per_step_ > 0 ? 0.9 * seconds_per_step_ + 0.1 * seconds : seconds;
  }
  if (style_.terminal) {
    const double eta = seconds_per_step_ > 0
                           ? static_cast<double>(num_steps_ - report.step) * seconds_per_step_
                           : -1;
    bar_ = report.step < num_steps_ ? format_bar(report, num_steps_, eta, style_) : "";
  }
  print(format_step(report, num_steps_) + "\n");
}

}  // namespace maniple

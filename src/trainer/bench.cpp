#include "trainer/bench.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "core/seconds_since.h"
#include "kernels/gemm.h"
#include "metrics/console.h"
#include "parallel/parameters.h"
#include "trainer/trainer.h"

namespace maniple {
namespace {

constexpr int64_t kSteps = 8, kWarmUp = 2;

// The run folder of a measurement: made by rank 0, known to all, gone at the end.
struct TemporaryFolder {
  explicit TemporaryFolder(Communicator& world) : owner(world.rank() == 0) {
    at::Tensor name = at::zeros({4096}, at::TensorOptions(at::kByte));
    auto* text = static_cast<char*>(name.data_ptr());
    if (owner) {
      const auto pattern = (std::filesystem::temp_directory_path() / "maniple-bench-XXXXXX").string();
      std::copy(pattern.begin(), pattern.end(), text);
      if (!::mkdtemp(text)) text[0] = 0;
    }
    world.broadcast(name, 0);
    path = text;
    if (path.empty())
      throw IoError(fmt::format("cannot make a temporary folder in {}; set TMPDIR to a folder that "
                                "can be written", std::filesystem::temp_directory_path().string()));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (owner) std::filesystem::remove_all(path, ignored);
  }
  const bool owner;
  std::string path;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The medians of all numbers of the steps after the warm-up.
std::map<std::string, double> medians(const std::string& run) {
  std::map<std::string, std::vector<double>> values;
  std::ifstream lines(run + "/metrics.jsonl");
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    if (!record.contains("loss") || record["step"].get<int64_t>() <= kWarmUp) continue;
    for (const auto& [key, value] : record.items())
      if (value.is_number()) values[key].push_back(value.get<double>());
  }
  std::map<std::string, double> out;
  for (auto& [key, v] : values) out[key] = median(std::move(v));
  return out;
}

}  // namespace

double measure_product_peak(const std::string& precision) {
  constexpr int64_t n = 2048;
  const auto type = compute_type(parse_precision(precision));
  const at::Tensor a = at::rand({n, n}).to(type), b = at::rand({n, n}).to(type), c = at::empty_like(a);
  double best = 1e30;
  for (int i = 0; i < 9; ++i) {
    const auto start = std::chrono::steady_clock::now();
    multiply(a, b, c);
    best = std::min(best, seconds_since(start));
  }
  return 2e-9 * static_cast<double>(n * n * n) / best;
}

ExitCode bench(Config config, std::unique_ptr<Communicator> world) {
  if (config.run.device != "cpu")
    throw ConfigError("bench measures processors; set run.device=cpu");
  at::set_num_threads(static_cast<int>(config.run.threads));
  const TemporaryFolder run(*world);
  config.run.dir = run.path;
  config.run.resume = "never";
  config.train.steps = kSteps;
  config.checkpoint.every = 0;
  config.eval.every = 0;
  config.metrics.every = 1;
  world->barrier();
  config.metrics.peak_gflops = measure_product_peak(config.train.precision);
  const int ranks = world->size();
  const double peak = config.metrics.peak_gflops * ranks;
  const ExitCode code = train(config, std::move(world));
  if (!run.owner || code != ExitCode::kOk) return code;

  const auto m = medians(run.path);
  auto value = [&](const std::string& key) { return m.count(key) ? m.at(key) : 0.0; };
  using Rows = std::vector<std::pair<std::string, std::string>>;
  const double step = value("tokens") / value("tokens_per_s");
  const Rows speed = {
      {"tokens/s", fmt::format("{:.0f}", value("tokens_per_s"))},
      {"seconds per step", fmt::format("{:.3f}", step)},
      {"model GFLOP/s", fmt::format("{:.0f}", value("model_gflops"))},
      {"product peak, GFLOP/s", fmt::format("{:.0f} ({}, 2048 x 2048 x 2048, {} ranks x {} threads)", peak,
                                            config.train.precision, ranks, config.run.threads)},
      {"share of the peak", fmt::format("{:.1f} %", 100 * value("model_gflops") / peak)},
      {"memory, peak per rank", fmt::format("{:.0f} MiB", value("memory_rss_peak_mib"))}};
  Rows phases;
  for (const char* phase : {"data", "forward", "dispatch", "experts", "combine", "backward", "overlap",
                            "fold", "exchange", "vote", "update", "publish"}) {
    const double seconds = value(std::string("time_") + phase);
    phases.emplace_back(phase, fmt::format("{:8.4f} s  {:5.1f} %", seconds, 100 * seconds / step));
  }
  std::fputs(format_table({{"speed", speed}, {"phase", phases}}, detect_console_style(stdout)).c_str(), stdout);
  return code;
}

}  // namespace maniple

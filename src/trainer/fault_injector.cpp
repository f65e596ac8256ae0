#include "trainer/fault_injector.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <sstream>
#include <thread>

#include "core/errors.h"
#include "core/random.h"
#include "kernels/flip_bit.h"

namespace maniple {
namespace {

constexpr std::array kState = {"master", "m", "v", "parameter"};
constexpr std::array kOthers = {"gradient", "sum", "reduced", "hidden", "gate", "index", "expert", "row"};

template <typename Names>
bool is_among(const Names& names, const std::string& what) {
  return std::find(names.begin(), names.end(), what) != names.end();
}

}  // namespace

bool BitFlip::in_state() const { return is_among(kState, what); }

std::vector<BitFlip> parse_flips(const std::string& text, const std::string& key, bool sticky) {
  std::vector<BitFlip> flips;
  std::istringstream list(text);
  for (std::string one; std::getline(list, one, ',');) {
    BitFlip f;
    char slice[16] = "", what[16] = "", end = 0;
    int length = 0;
    const int n = std::sscanf(one.c_str(), " %15[0-9al]:%ld:%ld:%15[a-z]:%ld:%d%n", slice, &f.position,
                              &f.step, what, &f.element, &f.bit, &length);
    const std::string who = slice, rest = one.substr(static_cast<size_t>(length));
    const bool every = who == "all";
    if (!every) f.slice = static_cast<SliceId>(std::atoi(slice));
    f.what = what;
    f.sticky = sticky;
    const bool ends = rest.empty() || (sticky && std::sscanf(rest.c_str(), ":%lf %c", &f.probability, &end) == 1);
    const bool names_slice = every || who.find_first_of("al") == who.npos;
    if (n != 6 || !ends || !names_slice || !(f.in_state() || is_among(kOthers, f.what)) || f.element < 0 || f.bit < 0 ||
        !(f.probability >= 0 && f.probability <= 1))
      throw ConfigError(fmt::format(
          "{}: '{}' is not slice:position:step:what:element:bit{} with a slice or all, and what one of "
          "{}, {}; example: 1:0:20:master:5:30",
          key, one, sticky ? "[:probability]" : "", fmt::join(kState, ", "), fmt::join(kOthers, ", ")));
    flips.push_back(f);
  }
  return flips;
}

std::vector<BitFlip> parse_faults(const FaultsConfig& faults) {
  std::vector<BitFlip> all = parse_flips(faults.flip, "faults.flip", false);
  const std::vector<BitFlip> sticky = parse_flips(faults.sticky, "faults.sticky", true);
  all.insert(all.end(), sticky.begin(), sticky.end());
  return all;
}

FaultInjector::FaultInjector(const FaultsConfig& faults, SliceId slice, Life life, int64_t position,
                             TrainStep& step, TrainedModel& model)
    : waiting_(parse_faults(faults)),
      life_(life),
      seed_(key_of(slice, position, life)),
      model_(model),
      unit_time_(faults.unit_seconds) {
  std::erase_if(waiting_, [&](const BitFlip& f) {
    return f.slice.value_or(slice) != slice || f.position != position;
  });
  if (unit_time_.count() > 0)
    step.inject_fault = [this](const FaultPoint& at) {
      if (at.phase == FaultPoint::kBackward) end_unit();
      return false;
    };
  if (waiting_.empty()) return;
  step.on_gradients = [this](TrainStep::GradientPlace place) {
    constexpr std::array names = {"gradient", "sum", "reduced"};
    reach(names[static_cast<size_t>(place)], [this](const BitFlip& f) {
      model_.optimizer->flip(f.what, f.element, f.bit);
    });
  };
  const auto tensor = [this](const char* what, const at::Tensor& t) {
    reach(what, [&](const BitFlip& f) { flip_bit(t, f.element, f.bit); });
  };
  model.moe.on_tensor = tensor;
  model.decoder->on_hidden = [tensor](const at::Tensor& x) { tensor("hidden", x); };
}

void FaultInjector::begin(Step step, uint32_t attempt) {
  step_ = step;
  first_attempt_ = attempt == 0;
  unit_end_ = std::chrono::steady_clock::now();
  for (const char* what : kState)
    reach(what, [this](const BitFlip& f) { model_.optimizer->flip(f.what, f.element, f.bit); });
}

void FaultInjector::end_unit() {
  unit_end_ += std::chrono::duration_cast<std::chrono::steady_clock::duration>(unit_time_);
  std::this_thread::sleep_until(unit_end_);
  unit_end_ = std::max(unit_end_, std::chrono::steady_clock::now());
}

void FaultInjector::reach(const std::string& what,
                          const std::function<void(const BitFlip&)>& damage) {
  std::erase_if(waiting_, [&](const BitFlip& f) {
    if (f.what != what) return false;
    if (f.sticky) {
      if (step_ >= f.step && uniform(seed_, draws_++) < f.probability) damage(f);
      return false;
    }
    const bool now = step_ == f.step && life_ == 1 && first_attempt_;
    if (now) damage(f);
    return now;
  });
}

}  // namespace maniple

#include "trainer/outliers.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/errors.h"

namespace maniple {
namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Outliers::Numbers Outliers::scores(const Numbers& numbers) const {
  MANIPLE_INVARIANT(numbers.size() == num_numbers_, "{} numbers of a step, not {}", numbers.size(),
                    num_numbers_);
  Numbers scores(num_numbers_);
  for (size_t i = 0; i < num_numbers_ && !history_.empty(); ++i) {
    std::vector<double> values, deviations;
    for (const Numbers& past : history_) values.push_back(past[i]);
    const double middle = median(values);
    for (const double value : values) deviations.push_back(std::abs(value - middle));
    // A history without any spread says nothing.
    const double spread = std::max(1.4826 * median(deviations), 1e-12 * std::abs(middle) + 1e-300);
    scores[i] = std::abs(numbers[i] - middle) / spread;
  }
  return scores;
}

std::optional<size_t> Outliers::suspect(const Numbers& numbers) const {
  if (static_cast<int64_t>(history_.size()) < kWindow || quiet_ > 0) return std::nullopt;
  Numbers s = scores(numbers);
  for (double& score : s)
    if (std::isnan(score)) score = std::numeric_limits<double>::infinity();
  const auto worst = std::max_element(s.begin(), s.end());
  if (*worst <= threshold_) return std::nullopt;
  return worst - s.begin();
}

void Outliers::commit(const Numbers& numbers, bool was_replayed) {
  const bool finite =
      std::all_of(numbers.begin(), numbers.end(), [](double x) { return std::isfinite(x); });
  replayed_ += was_replayed;
  if (was_replayed && finite) {
    const Numbers s = scores(numbers);
    threshold_ = std::max(threshold_, 1.25 * *std::max_element(s.begin(), s.end()));
  } else {
    threshold_ = std::max(kThreshold, threshold_ * 0.999);
  }
  ++steps_;
  quiet_ = std::max<int64_t>(0, quiet_ - 1);
  if (!finite) return;
  history_.push_back(numbers);
  if (static_cast<int64_t>(history_.size()) > kWindow) history_.pop_front();
}

std::vector<double> Outliers::state() const {
  std::vector<double> state = {threshold_, static_cast<double>(steps_),
                               static_cast<double>(replayed_), static_cast<double>(quiet_),
                               static_cast<double>(history_.size())};
  for (const Numbers& numbers : history_) state.insert(state.end(), numbers.begin(), numbers.end());
  state.resize(5 + kWindow * num_numbers_);
  return state;
}

void Outliers::set_state(const std::vector<double>& state) {
  MANIPLE_INVARIANT(state.size() == 5 + kWindow * num_numbers_, "state of {} numbers", state.size());
  threshold_ = state[0];
  steps_ = static_cast<int64_t>(state[1]);
  replayed_ = static_cast<int64_t>(state[2]);
  quiet_ = static_cast<int64_t>(state[3]);
  history_.clear();
  const auto n = static_cast<int64_t>(num_numbers_);
  for (int64_t i = 0; i < static_cast<int64_t>(state[4]); ++i)
    history_.emplace_back(state.begin() + 5 + i * n, state.begin() + 5 + (i + 1) * n);
}

}  // namespace maniple

// Steps whose numbers are far from what the last steps had (layer L0 of spec/elastic.md section 6).
// A function of the committed history alone, so all slices judge alike.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

namespace maniple {

class Outliers {
 public:
  using Numbers = std::vector<double>;  // of one step
  static constexpr int64_t kWindow = 128;      // steps of history
  static constexpr double kThreshold = 8;      // deviations, at least
  static constexpr double kBudget = 0.0025;    // share of steps that may be replayed, beyond four

  explicit Outliers(size_t num_numbers) : num_numbers_(num_numbers) {}
  void clear() { *this = Outliers(num_numbers_); }

  // How many robust deviations (median, 1.4826 MAD) each number is from the history.
  Numbers scores(const Numbers& numbers) const;
  bool may_replay() const { return static_cast<double>(replayed_) < 4 + kBudget * static_cast<double>(steps_); }
  // The number that is furthest out, if its score is beyond the threshold and the history is full.
  std::optional<size_t> suspect(const Numbers& numbers) const;
  // The step is committed. `was_replayed`: it had been suspected and was genuine, so what is
  // suspicious begins further out.
  void commit(const Numbers& numbers, bool was_replayed);
  void quiet_for(int64_t steps) { quiet_ = steps; }  // after an epoch change

  // The whole state, for a slice that joins; of fixed size.
  std::vector<double> state() const;
  void set_state(const std::vector<double>& state);

 private:
  size_t num_numbers_;
  std::deque<Numbers> history_;
  double threshold_ = kThreshold;
  int64_t steps_ = 0, replayed_ = 0, quiet_ = 0;
};

}  // namespace maniple

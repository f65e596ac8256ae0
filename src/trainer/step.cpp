#include "trainer/step.h"

#include <cmath>
#include <cstdio>
#include <sstream>

#include "core/errors.h"
#include "model/shard_rules.h"
#include "objectives/causal_lm.h"

namespace maniple {
namespace {

constexpr double kLossQuantum = 0x1p-40;
constexpr double kSquareQuantum = 0x1p-30, kLargestSquare = 0x1p24;  // of hidden states, per unit

int64_t to_quanta(double x) {
  MANIPLE_INVARIANT(!(std::abs(x) >= 0x1p22), "sum {} out of range", x);
  return std::llrint(x / kLossQuantum);
}

// Numbers of a MoE layer in the vote: RouterSums::numbers, tokens and dropped slots, then counts and
// probabilities.
constexpr int64_t kRouterNumbers = 5, kRouterCounts = 2;
int64_t layer_width(int64_t experts) { return kRouterNumbers + kRouterCounts + 2 * experts; }

double entropy_of(const int64_t* quanta, int64_t n) {
  double total = 0, entropy = 0;
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(quanta[i]);
  for (int64_t i = 0; i < n; ++i) {
    const double p = static_cast<double>(quanta[i]) / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  return entropy;
}

// A 128-bit fixed-point number as four limbs of 32 bits in int64, which sum without carry loss.
void append_limbs(std::vector<int64_t>& out, FixedPoint128 x) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<int64_t>((x >> (32 * i)) & 0xffffffffu));
}
FixedPoint128 from_limbs(const int64_t* limbs) {
  FixedPoint128 x = 0;
  for (int i = 3; i >= 0; --i) x = (x << 32) + static_cast<FixedPoint128>(limbs[i]);
  return x;
}

// The end of the sums: an attempt failed, a value was not finite, three squared norms, the checks.
constexpr size_t kFlagNumbers = 14 + kNumChecks;
class Flags {
 public:
  explicit Flags(const StepSums& sums)
      : at_(const_cast<int64_t*>(sums.data()) + sums.size() - kFlagNumbers) {}
  int64_t& failed() const { return at_[0]; }
  int64_t& nonfinite() const { return at_[1]; }
  int64_t& check(Check c) const { return at_[14 + static_cast<int>(c)]; }
  FixedPoint128 norm(int i) const { return from_limbs(at_ + 2 + 4 * i); }
  void set_norms(const ShardedAdamw::Norms& norms) const {
    std::vector<int64_t> limbs;
    for (const FixedPoint128 x : {norms.total, norms.experts, norms.routers}) append_limbs(limbs, x);
    std::copy(limbs.begin(), limbs.end(), at_ + 2);
  }

 private:
  int64_t* at_;
};

// The config's coefficient, else the model's own. Hugging Face concatenates the layers and leaves
// out 1/k, so its coefficient acts k times as strongly on the mean over layers.
double aux_coefficient(const MoeConfig& moe, const ModelConfig& model, int64_t moe_layers) {
  if (moe.aux_coef >= 0) return moe.aux_coef;
  if (model.model_type == "house" || moe_layers == 0) return 1e-3;
  const double on_mean = model.router_aux_coef * static_cast<double>(model.experts_per_token);
  return moe.aux_over_layers == "mean" ? on_mean : on_mean / static_cast<double>(moe_layers);
}

}  // namespace

int64_t num_units(const BatchConfig& batch, const MeshShape& mesh) {
  const int64_t round_rows = mesh.inner_dp() * batch.micro_batch_rows;
  if (batch.units > 0) {
    if (batch.units < mesh.slices || batch.units % mesh.slices)
      throw ConfigError(fmt::format(
          "batch.units={} must be a multiple of parallel.slices={} in a job of fixed slices; set "
          "batch.units={}",
          batch.units, mesh.slices, (batch.units / mesh.slices + 1) * mesh.slices));
    if (batch.rows % (batch.units * round_rows))
      throw ConfigError(fmt::format(
          "batch.rows={} must be divisible by units x inner_dp x micro_batch_rows = {} x {} x {}; "
          "set batch.rows={}",
          batch.rows, batch.units, mesh.inner_dp(), batch.micro_batch_rows,
          (batch.rows / (batch.units * round_rows) + 1) * batch.units * round_rows));
    return batch.units;
  }
  for (int64_t units = std::min<int64_t>(16, batch.rows); units >= mesh.slices; --units)
    if (batch.rows % (units * round_rows) == 0 && units % mesh.slices == 0) return units;
  throw ConfigError(fmt::format(
      "no number of units up to 16 fits batch.rows={} with slices={}, inner_dp={}, "
      "micro_batch_rows={}; set batch.rows={}",
      batch.rows, mesh.slices, mesh.inner_dp(), batch.micro_batch_rows, mesh.slices * round_rows));
}

TrainedModel::TrainedModel(const Config& config, const ModelConfig& model_config, ProcessMesh& mesh,
                           bool allocate)
    : model(model_config), store(mesh, parse_precision(config.train.precision)) {
  int64_t moe_count = 0;
  for (const LayerConfig& layer : model.layers) moe_count += layer.moe;
  check_mesh(model, mesh.shape());
  moe.settings = {.aux_coef = aux_coefficient(config.moe, model, moe_count),
                  .z_coef = config.moe.z_coef,
                  .aux_scope = config.moe.aux_scope,
                  .layer_weight = config.moe.aux_over_layers == "mean" && moe_count
                                      ? 1.0 / static_cast<double>(moe_count)
                                      : 1.0,
                  .routing = config.moe.routing,
                  .capacity_factor = config.moe.capacity_factor,
                  .drop_last = config.moe.drop_policy == "position"};
  moe.all_gather = config.moe.dispatcher == "all_gather";
  moe.max_tokens = config.moe.max_tokens;
  moe.weigh = config.sdc.dispatch;
  decoder = std::make_unique<Decoder>(
      model, store, [&](int64_t layer, const std::string& prefix, ParameterStore& s) {
        auto made = std::make_unique<MoeLayer>(model, layer, prefix, s, moe);
        moe_layers.push_back(made.get());
        return made;
      },
      config.train.recompute);
  if (!allocate) return;
  store.allocate(block_elements(config.optim, num_parameters(model)));
  optimizer = std::make_unique<ShardedAdamw>(store, config.optim,
                                             num_units(config.batch, mesh.shape()),
                                             num_parameters(model));
  if (config.quant.format != "none") {
    const Grid grid = make_grid(config.quant.format, compute_type(store.precision()));
    check_grid_on_mesh(grid, config.quant.format, model, mesh.shape());
    optimizer->quantize_with(FakeQuantizer(grid, config.quant.estimator == "clipped"));
  }
}

TrainStep::TrainStep(const Config& config, TrainedModel& model, ProcessMesh& mesh,
                     const RowSource& rows, std::unique_ptr<Objective> objective)
    : config_(config),
      model_(model),
      mesh_(mesh),
      rows_(rows),
      num_units_(maniple::num_units(config.batch, mesh.shape())),
      spikes_(parse_spikes(config.faults.spike)),
      objective_(std::move(objective)),
      hidden_squares_(model.model.num_layers() + 1) {
  const double tokens = static_cast<double>(config.batch.rows * config.batch.seq_len);
  scale_ = std::exp2(-std::round(std::log2(tokens)));
  // Only forwards are divided into phases; in backward a recomputed layer announces its own too.
  model.moe.on_phase = [this](MoePhase phase) {
    if (clock_.phase() == Phase::kBackward || clock_.phase() == Phase::kOther) return;
    constexpr Phase phases[] = {Phase::kForward, Phase::kDispatch, Phase::kExperts, Phase::kCombine};
    clock_.enter(phases[static_cast<int>(phase)]);
  };
  rounds_ = config.batch.rows /
            (num_units_ * mesh.shape().inner_dp() * config.batch.micro_batch_rows);
  assign();
}

std::vector<Spike> parse_spikes(const std::string& text) {
  std::vector<Spike> spikes;
  std::istringstream list(text);
  for (std::string one; std::getline(list, one, ',');) {
    Spike s;
    char end = 0;
    if (std::sscanf(one.c_str(), " %ld:%ld:%lf %c", &s.step, &s.unit, &s.factor, &end) != 3)
      throw ConfigError(fmt::format("faults.spike: '{}' is not step:unit:factor; example: 20:3:1e4", one));
    spikes.push_back(s);
  }
  return spikes;
}

const char* to_string(Check check) {
  static constexpr const char* kNames[] = {"canary", "reduced gradients", "sums", "state", "rows"};
  return kNames[static_cast<int>(check)];
}

int64_t canary_interval(int64_t canary_every, int64_t units, int64_t slices) {
  if (slices < 2 || canary_every >= 0) return slices < 2 ? 0 : canary_every;
  return std::max<int64_t>(4, (250 * slices + units - 1) / units);
}

std::optional<Canary> canary_of(int64_t step, int64_t units, int64_t slices, int64_t every) {
  if (slices < 2 || every <= 0) return std::nullopt;
  const auto first = [&](int64_t slice) { return slice * units / slices; };
  const auto count = [&](int64_t slice) { return first(slice + 1) - first(slice); };
  std::vector<int64_t> idle;  // who waits for the others anyhow
  for (int64_t s = 0; units % slices && s < slices; ++s)
    if (count(s) == units / slices) idle.push_back(s);
  if (idle.empty() && step % every) return std::nullopt;
  const int64_t turn = idle.empty() ? step / every : step;
  const int64_t second = idle.empty() ? turn % slices : idle[turn % static_cast<int64_t>(idle.size())];
  const int64_t rounds = turn / (idle.empty() ? slices : static_cast<int64_t>(idle.size()));
  const int64_t owner = (second + 1 + rounds % (slices - 1)) % slices;
  return Canary{first(owner) + rounds / (slices - 1) % count(owner), second};
}

Canary canary_by(int64_t second, int64_t step, int64_t units, int64_t slices) {
  const int64_t first = second * units / slices, count = (second + 1) * units / slices - first;
  return {(first + count + step % (units - count)) % units, second};
}

// 1 assign: contiguous ranges of units, by slice.
void TrainStep::assign(int64_t rotation) {
  batches_.reset();
  const int64_t slices = mesh_.num_slices(), range = (mesh_.slice() + rotation) % slices;
  first_unit_ = range * num_units_ / slices;
  units_here_ = (range + 1) * num_units_ / slices - first_unit_;
  unit_counts_ = at::zeros({units_here_, static_cast<int64_t>(model_.moe_layers.size()),
                            model_.model.num_experts},
                           at::TensorOptions(at::kLong));
}

std::vector<Row> TrainStep::micro_batch_rows(uint64_t k) const {
  const auto number = static_cast<int64_t>(k);
  return micro_batch_rows(number / rounds_ / units_here_ + 1,
                          first_unit_ + number / rounds_ % units_here_, number % rounds_);
}

std::vector<Row> TrainStep::micro_batch_rows(int64_t step, int64_t unit, int64_t round) const {
  const int64_t micro = config_.batch.micro_batch_rows, dp = mesh_.shape().inner_dp();
  const int64_t first = (step - 1) * config_.batch.rows + unit * rounds_ * dp * micro +
                        (round * dp + mesh_.dp_index()) * micro;
  std::vector<Row> rows;
  for (int64_t r = 0; r < micro; ++r)
    rows.push_back(rows_.row(Split::kTrain, static_cast<uint64_t>(first + r)));
  return rows;
}

MicroBatch TrainStep::to_tensors(std::vector<Row> rows) const {
  const int64_t B = static_cast<int64_t>(rows.size()), S = config_.batch.seq_len;
  const auto options = at::TensorOptions(at::kLong);
  MicroBatch b{{}, at::empty({B, S}, options), at::empty({B, S}, options), at::empty({B, S}, options),
               at::empty({B, S}, options)};
  for (int64_t r = 0; r < B; ++r) {
    auto put = [&](const at::Tensor& t, const std::vector<int32_t>& from) {
      std::copy(from.begin(), from.end(), t.data_ptr<int64_t>() + r * S);
    };
    put(b.ids, rows[r].input);
    put(b.target, rows[r].target);
    put(b.position, rows[r].position);
    put(b.document, rows[r].document);
  }
  for (at::Tensor* t : {&b.ids, &b.target, &b.position, &b.document}) *t = t->to(mesh_.device());
  b.rows = std::move(rows);
  return b;
}

void TrainStep::backward_unit(int64_t step, int64_t unit, bool early) {
  model_.optimizer->begin_unit(config_.sdc.state && unit == first_unit_ + units_here_ - 1);
  std::fill(hidden_squares_.begin(), hidden_squares_.end(), 0.0);
  for (int64_t round = 0; round < rounds_; ++round) {
    model_.decoder->on_backward = {};
    if (early && round == rounds_ - 1)
      model_.decoder->on_backward = [this](int64_t layer) {
        clock_.enter(Phase::kOverlap);
        model_.optimizer->begin_reduce(model_.decoder->layer_begin(layer));
        clock_.enter(Phase::kBackward);
      };
    clock_.enter(Phase::kData);
    std::vector<Row> rows;
    if (unit >= first_unit_ && unit < first_unit_ + units_here_) {
      const int64_t k = ((step - 1) * units_here_ + unit - first_unit_) * rounds_ + round;
      if (!batches_)
        batches_ = std::make_unique<Prefetcher>([this](uint64_t n) { return micro_batch_rows(n); },
                                                static_cast<uint64_t>(k), 4);
      rows = batches_->get(static_cast<uint64_t>(k)).rows;
    } else {
      rows = micro_batch_rows(step, unit, round);
    }
    clock_.enter(Phase::kForward);
    const MicroBatch b = to_tensors(std::move(rows));
    at::Tensor h = model_.decoder->forward(b.ids, b.position, b.document);
    for (const Spike& s : spikes_)
      if (s.step == step && s.unit == unit) h = h * s.factor;
    at::Tensor loss = objective_->loss(b, h.view({-1, h.size(-1)}), model_.decoder->head(),
                                       model_.model.vocab_size, scale_, mesh_.tp());
    for (const at::Tensor& l : model_.decoder->take_losses()) loss = loss + l * scale_;
    clock_.enter(Phase::kBackward);
    loss.backward();
    const std::vector<double> squares = model_.decoder->hidden_squares();
    for (size_t l = 0; l < squares.size(); ++l) hidden_squares_[l] += squares[l];
    clock_.enter(Phase::kOther);
  }
  model_.decoder->on_backward = {};
  if (on_gradients) on_gradients(GradientPlace::kUnit);
  mesh_.trail().end_unit([&] { return model_.optimizer->gradient_hash(); });
}

TrainStep::UnitResult TrainStep::unit(int64_t step, int64_t unit, const std::function<void()>& look) {
  const double logit_max = logit_max_;
  backward_unit(step, unit);
  ObjectiveSums objective = objective_->take_sums();
  objective.make_finite();
  for (MoeLayer* layer : model_.moe_layers) layer->router().sums.clear();
  logit_max_ = logit_max;
  if (look) look();
  UnitResult result{at::zeros({2}, at::TensorOptions(at::kLong)), model_.optimizer->gradient_hash()};
  if (mesh_.tp_index() == 0) {
    result.sums[0] = objective.num_targets;
    result.sums[1] = to_quanta(objective.values[0] * scale_);
  }
  model_.store.zero_grad();
  return result;
}

double TrainStep::loss_of(const UnitResult& result) const {
  const auto targets = static_cast<double>(std::max<int64_t>(1, result.sums[0].item<int64_t>()));
  return static_cast<double>(result.sums[1].item<int64_t>()) * kLossQuantum / scale_ / targets;
}

// Losses are rounded once per unit, counts are integers. Layout: targets, loss, the MoE layers, the
// objective's other sums, then the squares of the hidden states.
void TrainStep::add_unit_sums(int64_t unit, const ObjectiveSums& objective, StepSums& sums) {
  size_t i = 0;
  auto add = [&](int64_t x) { sums[i++] += x; };
  const bool speaks = mesh_.tp_index() == 0;  // all tp ranks hold the same cross-entropy
  add(speaks ? objective.num_targets : 0);
  add(speaks ? to_quanta(objective.values[0] * scale_) : 0);
  int64_t l = 0;
  for (MoeLayer* layer : model_.moe_layers) {
    RouterSums& s = layer->router().sums;
    for (const double* x : s.numbers()) add(to_quanta(*x * scale_));
    add(s.num_tokens);
    add(s.num_dropped);
    const at::Tensor host_counts = s.counts.cpu();
    const int64_t* counts = host_counts.data_ptr<int64_t>();
    for (int64_t e = 0; e < model_.model.num_experts; ++e) add(counts[e]);
    const at::Tensor host_probability = s.probability.cpu();
    const double* probability = host_probability.data_ptr<double>();
    for (int64_t e = 0; e < model_.model.num_experts; ++e) add(to_quanta(probability[e] * scale_));
    unit_counts_[unit - first_unit_][l++].copy_(s.counts);
    logit_max_ = std::max(logit_max_, s.logit_max);
    s.clear();
  }
  for (size_t j = 1; j < objective.values.size(); ++j)
    add(speaks ? to_quanta(objective.values[j] * scale_) : 0);
  for (const double square : hidden_squares_) {
    const double x = square * scale_;
    // What is not finite or no plausible square is as good as the largest one.
    const double bounded = x < kLargestSquare ? x : kLargestSquare;
    add(speaks ? std::llrint(bounded / kSquareQuantum) : 0);
  }
}

StepSums TrainStep::compute(int64_t step, int64_t attempt, const std::function<bool()>& keep_on,
                            const std::optional<Canary>& canary) {
  ShardedAdamw& optimizer = *model_.optimizer;
  bool failed = false, finite = true;
  uint64_t canary_hash = 0;
  auto inject = [&](int64_t unit, FaultPoint::Phase phase) {
    if (inject_fault && inject_fault({step, attempt, unit, phase})) failed = true;
  };

  // 2 to 4: data, forward, loss, backward, fold, unit by unit. The exchange begins during the last
  // backward, unless somebody wants to see gradients or sums before.
  const bool early = !keep_on && !canary && !on_gradients && optimizer.can_begin_early();
  optimizer.begin_attempt();
  objective_->begin_attempt(step);
  StepSums sums(num_sums() - kFlagNumbers, 0);
  for (MoeLayer* layer : model_.moe_layers) layer->router().sums.clear();
  model_.moe.balance = 0;
  logit_max_ = -std::numeric_limits<double>::infinity();
  clock_.take();
  for (int64_t unit = first_unit_; unit < first_unit_ + units_here_; ++unit) {
    if (keep_on && !keep_on()) {
      failed = true;
      break;
    }
    backward_unit(step, unit, early && unit == first_unit_ + units_here_ - 1);
    inject(unit, FaultPoint::kBackward);
    ObjectiveSums objective = objective_->take_sums();
    finite &= objective.make_finite();
    for (MoeLayer* layer : model_.moe_layers) finite &= layer->router().sums.make_finite();
    add_unit_sums(unit, objective, sums);
    clock_.enter(Phase::kFold);
    if (canary && canary->unit == unit) canary_hash = optimizer.gradient_hash();
    finite &= optimizer.fold_unit();
    clock_.enter(Phase::kOther);
  }
  if (canary && canary->second == mesh_.slice() && !failed)
    canary_hash = 0 - this->unit(step, canary->unit).gradient_hash;
  if (model_.moe.poisoned) failed = true;
  model_.moe.poisoned = false;

  clock_.enter(Phase::kExchange);
  optimizer.reduce_in_slice();
  inject(-1, FaultPoint::kExchange);
  if (on_gradients) on_gradients(GradientPlace::kSum);
  mesh_.trail().end_step([&] {
    const Fingerprint f = optimizer.sums_fingerprint();
    return mix64(f.lo + f.hi);
  });
  sums.resize(sums.size() + kFlagNumbers);
  add_check(sums, Check::kCanary, canary_hash);
  add_check(sums, Check::kSums, optimizer.addends_check());
  add_check(sums, Check::kRows, model_.moe.balance);
  Flags(sums).failed() = failed;
  Flags(sums).nonfinite() = !finite;
  return sums;
}

bool TrainStep::exchange(StepSums& sums, const Between& between) {
  ShardedAdamw& optimizer = *model_.optimizer;
  // 5 exchange: integer sums to the holders.
  clock_.enter(Phase::kExchange);
  if (!between([&] { optimizer.reduce_across(); })) return false;

  if (on_gradients) on_gradients(GradientPlace::kReduced);

  // 6 guard and the numbers of the vote: flags, sums and norms in one integer reduction.
  clock_.enter(Phase::kVote);
  const ShardedAdamw::Measured measured = optimizer.measure(/*check=*/config_.sdc.state);
  if (!measured.finite) Flags(sums).nonfinite() = 1;
  Flags(sums).set_norms(measured.norms);
  add_check(sums, Check::kSums, measured.check.sums);
  add_check(sums, Check::kBlocks, measured.check.copies);
  at::Tensor all = at::from_blob(sums.data(), {static_cast<int64_t>(sums.size())},
                                 at::TensorOptions(at::kLong));
  mesh_.in_slice().all_reduce(all);
  return between([&] { mesh_.across().all_reduce(all); });
}

void TrainStep::add_check(StepSums& sums, Check check, uint64_t hash) {
  int64_t& sum = Flags(sums).check(check);
  sum = static_cast<int64_t>(static_cast<uint64_t>(sum) + hash);
}

bool TrainStep::broken(const StepSums& sums, Check check) { return Flags(sums).check(check) != 0; }

Fingerprint TrainStep::computed(const StepSums& sums) const {
  Fingerprint f = model_.optimizer->sums_fingerprint();
  for (size_t i = 0; i + kFlagNumbers < sums.size(); ++i)
    for (int half = 0; half < 2; ++half)
      f.add_word(static_cast<uint32_t>(static_cast<uint64_t>(sums[i]) >> (32 * half)), 2 * i + half,
                 kNumGradGroups);
  return f;
}

size_t TrainStep::objective_begin() const {
  const auto layers = static_cast<int64_t>(model_.moe_layers.size());
  return static_cast<size_t>(2 + layers * layer_width(model_.model.num_experts));
}

size_t TrainStep::squares_begin() const {
  return objective_begin() + objective_->names().size() - 1;
}

size_t TrainStep::num_sums() const {
  return squares_begin() + hidden_squares_.size() + kFlagNumbers;
}

bool TrainStep::failed(const StepSums& sums) { return Flags(sums).failed() > 0; }

// Something to learn from, and nothing that must not be learnt.
bool TrainStep::finite(const StepSums& sums) { return Flags(sums).nonfinite() == 0 && sums[0] > 0; }

StepOutcome TrainStep::settle(const StepSums& sums) const {
  const int64_t E = model_.model.num_experts, layers = static_cast<int64_t>(model_.moe_layers.size());
  const Flags votes(sums);
  StepOutcome out;
  out.skipped = !finite(sums);
  out.num_targets = sums[0];
  out.num_tokens = config_.batch.rows * config_.batch.seq_len;
  const double factor = 1 / (scale_ * static_cast<double>(out.num_targets));
  out.loss = static_cast<double>(sums[1]) * kLossQuantum * factor;
  out.grad_norm = std::sqrt(from_fixed(votes.norm(0))) * factor;
  out.expert_grad_norm = std::sqrt(from_fixed(votes.norm(1))) * factor;
  out.router_grad_norm = std::sqrt(from_fixed(votes.norm(2))) * factor;
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t* s = sums.data() + 2 + l * layer_width(E);
    const int64_t *tokens = s + kRouterNumbers, *dropped = tokens + 1;
    const int64_t *counts = tokens + kRouterCounts, *probability = counts + E;
    const double per_token = kLossQuantum / (scale_ * static_cast<double>(*tokens * layers));
    out.aux_loss += static_cast<double>(s[0]) * per_token;
    out.z_loss += static_cast<double>(s[1]) * per_token;
    out.router_entropy += static_cast<double>(s[2]) * per_token;
    out.router_top1 += static_cast<double>(s[3]) * per_token;
    out.router_score += static_cast<double>(s[4]) * per_token;
    out.router_entropy_of_mean += entropy_of(probability, E) / static_cast<double>(layers);
    out.aux_losses.push_back(static_cast<double>(s[0] * layers) * per_token);
    out.z_losses.push_back(static_cast<double>(s[1] * layers) * per_token);
    const RouterSettings& r = model_.moe.settings;
    const double weight = kLossQuantum * factor * r.layer_weight;
    out.weighted_aux_loss += r.aux_coef * static_cast<double>(s[0]) * weight;
    out.weighted_z_loss += r.z_coef * static_cast<double>(s[1]) * weight;
    out.counts.emplace_back(counts, counts + E);
    out.dropped.push_back(static_cast<double>(*dropped) /
                          static_cast<double>(*tokens * model_.model.experts_per_token));
  }
  for (size_t l = 0; l < hidden_squares_.size(); ++l)
    out.hidden_rms.push_back(std::sqrt(static_cast<double>(sums[squares_begin() + l]) * kSquareQuantum /
                                       (scale_ * static_cast<double>(out.num_tokens))));
  const std::vector<std::string> names = objective_->names();
  for (size_t j = 1; j < names.size(); ++j)
    out.objective.emplace_back(
        names[j], out.skipped ? std::nan("")
                              : static_cast<double>(sums[objective_begin() + j - 1]) * kLossQuantum * factor);
  if (out.skipped) {
    out.loss = out.grad_norm = std::nan("");
    return out;
  }
  out.clip = config_.optim.clip > 0 ? std::min(1.0, config_.optim.clip / (out.grad_norm + 1e-6)) : 1.0;
  return out;
}

// 8 update, router bias and the balance statistics of the next step.
void TrainStep::apply(const StepOutcome& out, double lr) {
  if (out.skipped) return;
  clock_.enter(Phase::kUpdate);
  const double factor = 1 / (scale_ * static_cast<double>(out.num_targets));
  model_.optimizer->update(lr, factor, out.clip, ++applied_steps);
  for (size_t l = 0; l < model_.moe_layers.size(); ++l) {
    Router& router = model_.moe_layers[l]->router();
    const at::Tensor counts = at::tensor(out.counts[l], at::TensorOptions(at::kLong)).to(at::kDouble);
    router.previous_f.copy_(counts / counts.sum().clamp_min(1));
    if (model_.model.router_bias && config_.moe.bias_rate > 0)
      router.bias.add_((counts.mean() - counts).sign().to(router.bias.options()), config_.moe.bias_rate);
  }
}

StepOutcome TrainStep::run(int64_t step, double lr) {
  for (int64_t attempt = 0; attempt < kMaxAttempts; ++attempt) {
    StepSums sums = compute(step, attempt);
    exchange(sums, [](const std::function<void()>& communicate) {
      communicate();
      return true;
    });
    if (failed(sums) || broken(sums, Check::kRows)) continue;  // all redo it
    StepOutcome out = settle(sums);
    out.attempts = attempt + 1;
    apply(out, lr);
    clock_.enter(Phase::kPublish);
    if (!out.skipped) model_.optimizer->publish();
    out.seconds = clock_.take();
    return out;
  }
  throw CommError(fmt::format("step {} failed {} times in a row; giving up", step, kMaxAttempts));
}

TrainStep::RankNumbers TrainStep::rank_numbers() {
  if (model_.moe_layers.empty()) return {0, 0};
  at::Tensor counts = unit_counts_.clone();
  mesh_.in_slice().all_reduce(counts);
  const at::Tensor load = counts.to(at::kDouble), mean = load.mean(2).clamp_min(1e-300);
  return {logit_max_, (load.amax(2) / mean - 1).max().item<double>()};
}

double TrainStep::evaluate(int64_t num_rows) {
  double loss = 0;
  evaluate(num_rows, loss, [](const std::function<void()>& communicate) {
    communicate();
    return true;
  });
  return loss;
}

bool TrainStep::evaluate(int64_t num_rows, double& mean, const Between& between) {
  at::NoGradGuard no_grad;
  for (MoeLayer* layer : model_.moe_layers) layer->router().training = false;
  const int64_t ranks = mesh_.num_slices() * mesh_.shape().inner_dp();
  const int64_t mine = mesh_.slice() * mesh_.shape().inner_dp() + mesh_.dp_index();
  int64_t loss = 0, targets = 0;
  // Every rank takes part in as many forwards as any: rows beyond the end count nothing.
  for (int64_t first = 0; first < num_rows; first += ranks) {
    const int64_t row = first + mine;
    const MicroBatch b = to_tensors(
        {rows_.row(Split::kValidation, static_cast<uint64_t>(std::min(row, num_rows - 1)))});
    const at::Tensor h = model_.decoder->forward(b.ids, b.position, b.document);
    CrossEntropySums sums;
    cross_entropy(h.view({-1, h.size(-1)}), model_.decoder->head(), model_.model.vocab_size,
                  b.target.view({-1}), 1, mesh_.tp(), sums);
    if (row >= num_rows || mesh_.tp_index() != 0) continue;
    loss += to_quanta(sums.loss * scale_);
    targets += sums.num_targets;
  }
  for (MoeLayer* layer : model_.moe_layers) layer->router().training = true;
  at::Tensor all = at::tensor(std::vector<int64_t>{loss, targets}, at::TensorOptions(at::kLong));
  mesh_.in_slice().all_reduce(all);
  if (!between([&] { mesh_.across().all_reduce(all); })) return false;
  const int64_t* s = all.data_ptr<int64_t>();
  mean = static_cast<double>(s[0]) * kLossQuantum / scale_ /
         static_cast<double>(std::max<int64_t>(1, s[1]));
  return true;
}

}  // namespace maniple

#include "moe/router.h"

#include <algorithm>
#include <cmath>

#include "core/errors.h"

namespace maniple {

Router::Router(const ModelConfig& model, int64_t layer, const std::string& prefix,
               ParameterStore& store, const RouterSettings& settings)
    : model_(model), layer_(layer), settings_(settings), mesh_(store.mesh()) {
  // Each tp rank routes its own tokens: the gradient is partial.
  weight_ = &store.add(prefix + "gate.weight", {model.num_experts, model.hidden_size},
                       GradGroup::kPartial, {}, {Init::kNormal, model.initializer_range});
  weight_->router = true;
  const auto options = at::TensorOptions(mesh_.device());
  const auto wide = options.dtype(accumulate_type(store.precision()));
  bias = at::empty({model.num_experts}, options.dtype(at::kFloat));
  previous_f = at::empty({model.num_experts}, wide);
  reset();
  sums.counts = at::zeros({model.num_experts}, options.dtype(at::kLong));
  sums.probability = at::zeros({model.num_experts}, options.dtype(at::kDouble));
}

void RouterSums::clear() {
  for (double* x : numbers()) *x = 0;
  logit_max = -std::numeric_limits<double>::infinity();
  counts.zero_();
  probability.zero_();
  num_tokens = num_dropped = 0;
}

bool RouterSums::make_finite() {
  bool finite = true;
  for (double* x : numbers())
    if (!std::isfinite(*x)) {
      finite = false;
      *x = 0;
    }
  if (!at::isfinite(probability).all().item<bool>()) {
    finite = false;
    probability.zero_();
  }
  return finite;
}

at::Tensor keep_best_groups(const at::Tensor& scores_TE, int64_t num_groups, int64_t kept) {
  const int64_t T = scores_TE.size(0), E = scores_TE.size(1);
  const at::Tensor grouped = scores_TE.view({T, num_groups, E / num_groups});
  const at::Tensor two_best = std::get<0>(grouped.topk(2, -1)).sum(-1);
  const at::Tensor order = std::get<1>(two_best.sort(/*stable=*/true, -1, /*descending=*/true));
  const at::Tensor dropped = order.narrow(1, kept, num_groups - kept);
  const at::Tensor is_dropped =
      at::zeros({T, num_groups}, scores_TE.options().dtype(at::kBool)).scatter_(1, dropped, true);
  return grouped.masked_fill(is_dropped.unsqueeze(-1), -std::numeric_limits<double>::infinity())
      .view({T, E});
}

at::Tensor drop_beyond(int64_t capacity, bool drop_last, const at::Tensor& experts_TK,
                       const at::Tensor& weights_TK, int64_t num_experts) {
  const at::Tensor expert = experts_TK.reshape({-1}), weight = weights_TK.reshape({-1});
  const at::Tensor slot = at::arange(expert.size(0), expert.options());
  const at::Tensor by_claim =
      drop_last ? slot : std::get<1>(weight.sort(/*stable=*/true, 0, /*descending=*/true));
  const auto [sorted, index] = expert.index_select(0, by_claim).sort(/*stable=*/true, 0, false);
  const at::Tensor by_expert = by_claim.index_select(0, index);
  const at::Tensor counts = at::bincount(expert, {}, num_experts);
  const at::Tensor begin = (counts.cumsum(0) - counts).index_select(0, sorted);
  const at::Tensor dropped = by_expert.masked_select((slot - begin).ge(capacity));
  return expert.index_fill(0, dropped, num_experts).view(experts_TK.sizes());
}

// The K best, larger score first, then the smaller index (a stable sort).
at::Tensor Router::select(const at::Tensor& scores_TE) const {
  const int64_t T = scores_TE.size(0), E = model_.num_experts, K = model_.experts_per_token;
  if (settings_.routing == "balanced") {
    const at::Tensor slot = at::arange(T * K, scores_TE.options().dtype(at::kLong));
    return slot.remainder(E).view({T, K});
  }
  if (settings_.routing == "skewed") {  // half of all slots go to the first K experts
    const at::Tensor token = at::arange(T, scores_TE.options().dtype(at::kLong)).unsqueeze(1);
    const at::Tensor slot = at::arange(K, token.options()).unsqueeze(0);
    const at::Tensor spread = (token * K + slot).remainder(E);
    return at::where(token.remainder(2).eq(0).expand({T, K}), slot.expand({T, K}), spread);
  }
  const bool all_groups = model_.groups_per_token == model_.expert_groups;
  const at::Tensor open_TE =
      all_groups ? scores_TE
                 : keep_best_groups(scores_TE, model_.expert_groups, model_.groups_per_token);
  return std::get<1>(open_TE.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(1, 0, K);
}

at::Tensor Router::balance_f(const at::Tensor& scores_TE, const at::Tensor& experts_TK,
                             const at::Tensor& row_of_T, int64_t num_rows) const {
  if (settings_.aux_scope == "previous_step") return previous_f.unsqueeze(0);
  const int64_t E = model_.num_experts, K = model_.experts_per_token;
  const bool per_row = settings_.aux_scope == "sequence";
  // DeepSeek's sequence rule counts the top-k of the scores without the bias.
  const at::Tensor chosen = per_row ? select(scores_TE) : experts_TK;
  const at::Tensor row = per_row ? row_of_T : at::zeros_like(row_of_T);
  at::Tensor counts = at::bincount((row.unsqueeze(1) * E + chosen).reshape({-1}), {},
                                   (per_row ? num_rows : 1) * E);
  (per_row ? mesh_.tp() : mesh_.in_slice()).all_reduce(counts);
  counts = counts.view({-1, E}).to(scores_TE.scalar_type());
  const at::Tensor f = counts / counts.sum(1, true).clamp_min(K);
  return per_row ? f.index_select(0, row_of_T) : f;
}

void Router::reset() {
  bias.zero_();
  previous_f.fill_(1.0 / static_cast<double>(model_.num_experts));
}

Routing Router::forward(const at::Tensor& x_TD, const at::Tensor& row_of_T, int64_t num_rows,
                        bool count) {
  Routing out;
  const auto wide = weight_->grad.scalar_type();
  const at::Tensor logits = linear(x_TD, *weight_);
  const bool sigmoid = model_.router_score == RouterScore::kSigmoid;
  // s_i / sum_j s_j as a softmax over log s: no epsilon to exploit.
  const at::Tensor log_scores = sigmoid ? at::log_sigmoid(logits) : at::log_softmax(logits, -1);
  const at::Tensor probabilities = sigmoid ? at::softmax(log_scores, -1) : log_scores.exp();
  {
    at::NoGradGuard no_grad;
    const at::Tensor scores = log_scores.exp();
    out.experts_TK = select(model_.router_bias ? scores + bias.to(wide) : scores);
  }
  const at::Tensor chosen = log_scores.gather(1, out.experts_TK);
  out.weights_TK = model_.normalize_topk ? at::softmax(chosen, -1) : chosen.exp();
  if (model_.routed_scale != 1) out.weights_TK = out.weights_TK * model_.routed_scale;
  out.logits_TE = logits.detach();

  if (!training) return out;
  const double E = static_cast<double>(model_.num_experts);
  const at::Tensor routed_TK = out.experts_TK;
  at::Tensor f;
  {
    at::NoGradGuard no_grad;
    f = balance_f(log_scores.exp(), routed_TK, row_of_T, num_rows);
    if (settings_.capacity_factor > 0) {
      const double even = static_cast<double>(routed_TK.numel()) / E;
      const auto capacity = static_cast<int64_t>(std::ceil(settings_.capacity_factor * even));
      out.experts_TK = drop_beyond(capacity, settings_.drop_last, routed_TK, out.weights_TK.detach(),
                                   model_.num_experts);
    }
  }
  const at::Tensor aux = (f * probabilities).sum() * E;
  const at::Tensor z = at::logsumexp(logits, -1).square().sum();
  out.loss = (aux * settings_.aux_coef + z * settings_.z_coef) * settings_.layer_weight;

  if (!count) return out;
  at::NoGradGuard no_grad;
  sums.aux += aux.to(at::kDouble).item<double>();
  sums.z += z.to(at::kDouble).item<double>();
  sums.entropy -= (probabilities * probabilities.clamp_min(1e-30).log()).sum().item<double>();
  if (x_TD.size(0) > 0) {
    sums.top1 += probabilities.amax(1).sum().item<double>();
    sums.logit_max = std::max(sums.logit_max, out.logits_TE.max().item<double>());
  }
  sums.score += sigmoid ? log_scores.exp().sum().item<double>() : static_cast<double>(x_TD.size(0));
  sums.probability += probabilities.sum(0);
  sums.counts += at::bincount(routed_TK.reshape({-1}), {}, model_.num_experts);
  sums.num_tokens += x_TD.size(0);
  if (settings_.capacity_factor > 0)
    sums.num_dropped += out.experts_TK.eq(model_.num_experts).sum().item<int64_t>();
  return out;
}

}  // namespace maniple

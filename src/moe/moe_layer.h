// Mixture of experts: route, dispatch to the ranks that hold the experts, compute, combine, plus the
// shared expert. Tokens are split over tp first, so that every token is routed once per slice.
#pragma once

#include <functional>

#include "model/feed_forward.h"
#include "moe/experts.h"
#include "moe/router.h"

namespace maniple {

// Where a layer's forward is; kOther: routing and the shared expert.
enum class MoePhase { kOther, kDispatch, kExperts, kCombine };

// What the layers of one model share during a forward.
struct MoeContext {
  RouterSettings settings;
  bool all_gather = false;  // the reference dispatcher instead of all_to_all
  int64_t max_tokens = 0;   // memory guard of run_experts
  bool poisoned = false;           // an exchange was found inconsistent: void the unit
  bool weigh = true;               // the rows that are sent and those that arrive
  uint64_t balance = 0;            // of them (row_balance.h)
  bool keep_routing = false;       // fill `routing` for inspection
  std::vector<Routing> routing;
  std::function<void(MoePhase)> on_phase;  // called at the beginning of each phase, for timing
  // Called with what a forward has just computed, "gate", "index", "expert", or got from other ranks,
  // "row". For fault injection.
  std::function<void(const char* what, const at::Tensor&)> on_tensor;
  std::function<void(std::vector<int64_t>&)> corrupt_counts;  // fault injection of tests
};

class MoeLayer : public FeedForward {
 public:
  MoeLayer(const ModelConfig& model, int64_t layer, const std::string& prefix,
           ParameterStore& store, MoeContext& context);
  // Collective over tp and over the ep x etp group.
  at::Tensor forward(const at::Tensor& x_BSD, LayerPass& pass) override;
  Router& router() { return *router_; }

 private:
  at::Tensor routed(const at::Tensor& x_TD, const Routing& routing);
  void enter(MoePhase phase);

  const ModelConfig& model_;
  ProcessMesh& mesh_;
  MoeContext& context_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<Experts> experts_;
  std::unique_ptr<DenseFeedForward> shared_;
  Parameter* shared_gate_ = nullptr;
};

}  // namespace maniple

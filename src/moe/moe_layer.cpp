#include "moe/moe_layer.h"

#include <numeric>

#include "core/errors.h"
#include "kernels/rows.h"
#include "moe/all_gather_dispatch.h"
#include "moe/chunked_experts.h"
#include "moe/row_balance.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

at::Tensor inverse_of(const at::Tensor& permutation) {
  at::Tensor inverse = at::empty_like(permutation);
  inverse.index_put_({permutation}, at::arange(permutation.size(0), permutation.options()));
  return inverse;
}

// x of each slot, slots in the order `order` (int64 [T K], slot = token K + k). Backward adds a
// token's slots in slot order.
struct GatherSlots : torch::autograd::Function<GatherSlots> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& order,
                            const at::Tensor& inverse, int64_t K) {
    ctx->save_for_backward({inverse});
    ctx->saved_data["K"] = K;
    return gather_rows(x, order, K);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const at::Tensor inverse = ctx->get_saved_variables()[0];
    return {gather_sum_rows(grads[0], inverse, ctx->saved_data["K"].toInt()), {}, {}, {}};
  }
};

// Its transpose: the sum of a token's slots, in slot order.
struct CombineSlots : torch::autograd::Function<CombineSlots> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& order,
                            const at::Tensor& inverse, int64_t K) {
    ctx->save_for_backward({order});
    ctx->saved_data["K"] = K;
    return gather_sum_rows(y, inverse, K);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    return {gather_rows(grads[0], ctx->get_saved_variables()[0], ctx->saved_data["K"].toInt()), {}, {},
            {}};
  }
};

// Which rows go where: everybody judges the same gathered counts [source, etp copies of E].
struct Plan {
  std::vector<int64_t> send_rows, recv_rows;  // per rank of the group
  std::vector<int64_t> local_counts;          // per local expert, over all sources
  std::vector<ExpertRows> sent, received;     // the same rows, in send order and in expert order
  at::Tensor to_expert_order, from_expert_order;  // between receive order and expert order
};

Plan make_plan(const at::Tensor& counts_GE, int rank, int64_t ep, int64_t etp,
               const at::Device& device) {
  const int64_t G = ep * etp, E = counts_GE.size(1), local = E / ep;
  const auto counts = counts_GE.accessor<int64_t, 2>();
  Plan plan;
  auto rows = [&](int64_t source, int64_t destination) {
    int64_t n = 0;
    for (int64_t e = 0; e < local; ++e) n += counts[source][destination / etp * local + e];
    return n;
  };
  for (int64_t g = 0; g < G; ++g) {
    plan.send_rows.push_back(rows(rank, g));
    plan.recv_rows.push_back(rows(g, rank));
    for (int64_t e = g / etp * local; e < (g / etp + 1) * local; ++e)
      plan.sent.push_back({e, counts[rank][e]});
  }
  // Received: by source, inside by expert. Wanted: by expert, inside by source.
  const int64_t first = rank / etp * local;
  std::vector<std::vector<int64_t>> begin(G, std::vector<int64_t>(local));
  int64_t at_row = 0;
  for (int64_t g = 0; g < G; ++g)
    for (int64_t e = 0; e < local; ++e) {
      begin[g][e] = at_row;
      at_row += counts[g][first + e];
    }
  at::Tensor order = at::empty({at_row}, at::TensorOptions(at::kLong));
  int64_t* next = order.data_ptr<int64_t>();
  for (int64_t e = 0; e < local; ++e) {
    int64_t total = 0;
    for (int64_t g = 0; g < G; ++g) {
      const int64_t n = counts[g][first + e];
      std::iota(next, next + n, begin[g][e]);
      next += n;
      total += n;
    }
    plan.local_counts.push_back(total);
    plan.received.push_back({first + e, total});
  }
  plan.to_expert_order = order.to(device);
  plan.from_expert_order = inverse_of(plan.to_expert_order);
  return plan;
}

}  // namespace

MoeLayer::MoeLayer(const ModelConfig& model, int64_t layer, const std::string& prefix,
                   ParameterStore& store, MoeContext& context)
    : model_(model), mesh_(store.mesh()), context_(context) {
  router_ = std::make_unique<Router>(model, layer, prefix, store, context.settings);
  experts_ = std::make_unique<Experts>(model, prefix, store);
  if (model.shared_expert_size)
    shared_ = std::make_unique<DenseFeedForward>(model, prefix + "shared_expert.",
                                                 model.shared_expert_size, store);
  if (model.shared_expert_gate)
    shared_gate_ = &store.add(prefix + "shared_expert_gate.weight", {1, model.hidden_size},
                              GradGroup::kReplicated, {}, {Init::kNormal, model.initializer_range});
}

void MoeLayer::enter(MoePhase phase) {
  if (context_.on_phase) context_.on_phase(phase);
}

at::Tensor MoeLayer::routed(const at::Tensor& x_TD, const Routing& routing) {
  const int64_t K = model_.experts_per_token, T = x_TD.size(0);
  const int64_t ep = mesh_.shape().ep, etp = mesh_.shape().etp, G = ep * etp;
  auto compute = [this](const at::Tensor& x, const at::Tensor& p, const std::vector<int64_t>& rows,
                        std::function<at::Tensor()> again = {}) {
    enter(MoePhase::kExperts);
    const at::Tensor y = run_experts(*experts_, x, p, rows, context_.max_tokens, std::move(again));
    if (context_.on_tensor) context_.on_tensor("expert", y);
    enter(MoePhase::kCombine);
    return y;
  };
  if (context_.all_gather && G > 1)
    return all_gather_dispatch(x_TD, routing, mesh_.ep_index() * experts_->num_local(),
                               experts_->num_local(), mesh_.experts(), compute);
  const at::Tensor flat = routing.experts_TK.reshape({-1});
  const at::Tensor order = std::get<1>(flat.sort(/*stable=*/true, 0, /*descending=*/false));
  const at::Tensor inverse = inverse_of(order);
  const at::Tensor counts = at::bincount(flat, {}, model_.num_experts + 1)
                                .narrow(0, 0, model_.num_experts).cpu();  // planned on the host
  at::Tensor x = GatherSlots::apply(x_TD, order, inverse, K);
  at::Tensor p = permute_rows(routing.weights_TK.reshape({-1}), order, inverse);
  // Dropped slots are the last ones in this order: they are not sent, and come back as zeros.
  const int64_t slots = T * K, N = counts.sum().item<int64_t>();
  if (N < slots) {
    x = x.narrow(0, 0, N);
    p = p.narrow(0, 0, N);
  }

  at::Tensor y;
  if (G == 1) {
    const at::Tensor host = counts.contiguous();
    const int64_t* c = host.data_ptr<int64_t>();
    // Gathered again in backward, K copies of each token are not kept.
    y = compute(x, p, std::vector<int64_t>(c, c + model_.num_experts),
                [from = x_TD.detach(), index = order.narrow(0, 0, N), K] { return gather_rows(from, index, K); });
  } else {
    Communicator& comm = mesh_.experts();
    at::Tensor all = at::empty({G, model_.num_experts + 1}, counts.options());
    at::Tensor mine = at::cat({counts, at::full({1}, N, counts.options())});
    if (context_.corrupt_counts) {
      std::vector<int64_t> c(mine.data_ptr<int64_t>(), mine.data_ptr<int64_t>() + mine.numel());
      context_.corrupt_counts(c);
      mine = at::tensor(c, counts.options());
    }
    comm.all_gather(mine, all);
    const at::Tensor table = all.narrow(1, 0, model_.num_experts).contiguous();
    // All ranks judge the same matrix, so all dispatch or none does.
    const at::Tensor wrong = table.sum(1).ne(all.select(1, model_.num_experts))
                                 .logical_or((table < 0).any(1));
    if (wrong.any().item<bool>()) {
      context_.poisoned = true;
      return x_TD * 0;
    }
    const Plan plan = make_plan(table, comm.rank(), ep, etp, mesh_.device());
    // Every slot is sent to the etp ranks that share its expert: a copy for each, number slot etp + j.
    // In the send buffer stand the copies of group 0 for its rank 0, for its rank 1, and so on.
    at::Tensor copies, copy_positions;
    if (etp > 1) {
      copies = at::empty({etp * N}, counts.options());
      int64_t* to = copies.data_ptr<int64_t>();
      int64_t begin = 0;
      for (int64_t g = 0; g < ep; ++g) {
        const int64_t n = plan.send_rows[g * etp];
        for (int64_t j = 0; j < etp; ++j)
          for (int64_t slot = begin; slot < begin + n; ++slot) *to++ = slot * etp + j;
        begin += n;
      }
      copies = copies.to(mesh_.device());
      copy_positions = inverse_of(copies);
    }
    auto weigh = [&](const at::Tensor& t, const std::vector<ExpertRows>& rows, Side side) {
      return context_.weigh && t.is_cpu() ? weigh_rows(t, rows, side, context_.balance) : t;
    };
    auto send = [&](const at::Tensor& t) {
      const at::Tensor out = etp > 1 ? GatherSlots::apply(t, copies, copy_positions, etp) : t;
      const at::Tensor in = exchange_rows(weigh(out, plan.sent, Side::kSender), plan.send_rows,
                                          plan.recv_rows, comm);
      if (context_.on_tensor) context_.on_tensor("row", in);
      return weigh(permute_rows(in, plan.to_expert_order, plan.from_expert_order), plan.received,
                   Side::kReceiver);
    };
    y = compute(send(x), send(p.unsqueeze(1)).squeeze(1), plan.local_counts);
    y = permute_rows(weigh(y, plan.received, Side::kSender), plan.from_expert_order,
                     plan.to_expert_order);
    y = weigh(exchange_rows(y, plan.recv_rows, plan.send_rows, comm), plan.sent, Side::kReceiver);
    if (etp > 1) y = CombineSlots::apply(y, copies, copy_positions, etp);
  }
  if (N < slots) y = at::cat({y, at::zeros({slots - N, y.size(1)}, y.options())});
  return CombineSlots::apply(y, order, inverse, K);
}

at::Tensor MoeLayer::forward(const at::Tensor& x_BSD, LayerPass& pass) {
  const int64_t B = x_BSD.size(0), S = x_BSD.size(1), D = x_BSD.size(2);
  const at::Tensor x_all = x_BSD.reshape({B * S, D});
  const at::Tensor x_TD = split_tokens(x_all, mesh_.tp());
  const int64_t part = (B * S + mesh_.tp().size() - 1) / mesh_.tp().size();
  const at::Tensor row = at::arange(x_TD.size(0), x_TD.options().dtype(at::kLong))
                             .add_(part * mesh_.tp().rank()).floor_divide_(S);
  const Routing routing = router_->forward(x_TD, row, B, !pass.again);
  pass.loss = routing.loss;
  if (context_.on_tensor) {
    context_.on_tensor("gate", routing.weights_TK);
    context_.on_tensor("index", routing.experts_TK);
  }
  if (context_.keep_routing && !pass.again) context_.routing.push_back(routing);
  enter(MoePhase::kDispatch);
  at::Tensor y = gather_tokens(routed(x_TD, routing), B * S, mesh_.tp()).view({B, S, D});
  enter(MoePhase::kOther);
  if (shared_) {
    at::Tensor shared = shared_->forward(x_BSD);
    if (shared_gate_) shared = at::sigmoid(linear(x_BSD, *shared_gate_)) * shared;
    y = y + shared;
  }
  return y;
}

}  // namespace maniple

#include "moe/experts.h"

#include "core/errors.h"
#include "model/feed_forward.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// grad_e += a^T b in the accumulation type.
void accumulate_product(at::Tensor grad, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == grad.scalar_type())
    grad.addmm_(a.t(), b);
  else
    grad.add_(at::mm(a.t(), b));
}

// Grouped products over the experts with one preallocated buffer per intermediate; backward is
// written out, since autograd over a loop with concatenation costs several times as much.
struct GroupedExperts : torch::autograd::Function<GroupedExperts> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            std::vector<int64_t> counts, int64_t gate_up, int64_t down,
                            int64_t activation) {
    auto& gu = *reinterpret_cast<Parameter*>(gate_up);
    auto& dn = *reinterpret_cast<Parameter*>(down);
    const int64_t N = x.size(0), F = dn.shape[2], D = dn.shape[1];
    at::Tensor h = at::empty({N, 2 * F}, x.options());
    for_each(counts, [&](int64_t e, int64_t begin, int64_t n) {
      at::Tensor out = h.narrow(0, begin, n);
      at::mm_out(out, x.narrow(0, begin, n), gu.value[e].view({2 * F, D}).t());
    });
    at::Tensor a = activate(static_cast<Activation>(activation), h.narrow(1, 0, F));
    a.mul_(h.narrow(1, F, F));
    const at::Tensor pa = (a * weight.unsqueeze(1)).to(x.scalar_type());
    at::Tensor y = at::empty({N, D}, x.options());
    for_each(counts, [&](int64_t e, int64_t begin, int64_t n) {
      at::Tensor out = y.narrow(0, begin, n);
      at::mm_out(out, pa.narrow(0, begin, n), dn.value[e].t());
    });
    ctx->save_for_backward({x, weight, h, pa});
    ctx->saved_data["counts"] = counts;
    ctx->saved_data["gate_up"] = gate_up;
    ctx->saved_data["down"] = down;
    ctx->saved_data["activation"] = activation;
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto variables = ctx->get_saved_variables();
    const at::Tensor &x = variables[0], &weight = variables[1], &h = variables[2], &pa = variables[3];
    auto& gu = *reinterpret_cast<Parameter*>(ctx->saved_data["gate_up"].toInt());
    auto& dn = *reinterpret_cast<Parameter*>(ctx->saved_data["down"].toInt());
    const auto counts = ctx->saved_data["counts"].toIntVector();
    const auto activation = static_cast<Activation>(ctx->saved_data["activation"].toInt());
    const at::Tensor dy = grads[0].contiguous();
    const int64_t N = x.size(0), F = dn.shape[2], D = dn.shape[1];
    at::Tensor dpa = at::empty({N, F}, x.options());
    for_each(counts, [&](int64_t e, int64_t begin, int64_t n) {
      at::Tensor out = dpa.narrow(0, begin, n);
      at::mm_out(out, dy.narrow(0, begin, n), dn.value[e]);
      accumulate_product(dn.grad[e], dy.narrow(0, begin, n), pa.narrow(0, begin, n));
    });
    const at::Tensor gate = h.narrow(1, 0, F), up = h.narrow(1, F, F);
    const at::Tensor act = activate(activation, gate);
    const auto wide = weight.scalar_type();
    const at::Tensor dweight = (dpa.to(wide) * (act * up).to(wide)).sum(1);
    const at::Tensor da = (dpa * weight.unsqueeze(1)).to(x.scalar_type());
    at::Tensor dh = at::empty_like(h);
    const at::Tensor dact = da * up;
    dh.narrow(1, 0, F).copy_(activation == Activation::kSilu ? at::silu_backward(dact, gate)
                                                             : at::gelu_backward(dact, gate, "tanh"));
    at::Tensor dup = dh.narrow(1, F, F);
    at::mul_out(dup, da, act);
    at::Tensor dx = at::empty_like(x);
    for_each(counts, [&](int64_t e, int64_t begin, int64_t n) {
      at::Tensor out = dx.narrow(0, begin, n);
      at::mm_out(out, dh.narrow(0, begin, n), gu.value[e].view({2 * F, D}));
      accumulate_product(gu.grad[e].view({2 * F, D}), dh.narrow(0, begin, n), x.narrow(0, begin, n));
    });
    return {dx, dweight, {}, {}, {}, {}};
  }

  template <typename Body>
  static void for_each(const std::vector<int64_t>& counts, const Body& body) {
    int64_t begin = 0;
    for (size_t e = 0; e < counts.size(); ++e) {
      if (counts[e]) body(static_cast<int64_t>(e), begin, counts[e]);
      begin += counts[e];
    }
  }
};

}  // namespace

Experts::Experts(const ModelConfig& model, const std::string& prefix, ParameterStore& store)
    : activation_(model.activation) {
  const ProcessMesh& mesh = store.mesh();
  const MeshShape& shape = mesh.shape();
  MANIPLE_INVARIANT(model.num_experts % shape.ep == 0 && model.expert_size % shape.etp == 0,
                    "ep {}, etp {}", shape.ep, shape.etp);
  num_local_ = model.num_experts / shape.ep;
  const Init normal{Init::kNormal, model.initializer_range};
  const Shard experts{0, mesh.ep_index(), shape.ep};
  const int64_t E = model.num_experts, D = model.hidden_size, F = model.expert_size;
  gate_up_ = &store.add(prefix + "experts.gate_up_proj", {E, 2, F, D}, GradGroup::kExpert,
                        {experts, {2, mesh.etp_index(), shape.etp}}, normal);
  down_ = &store.add(prefix + "experts.down_proj", {E, D, F}, GradGroup::kExpert,
                     {experts, {2, mesh.etp_index(), shape.etp}}, normal);
}

at::Tensor Experts::forward(const at::Tensor& x_ND, const at::Tensor& weight_N,
                            const std::vector<int64_t>& counts) {
  return GroupedExperts::apply(x_ND, weight_N, counts, reinterpret_cast<int64_t>(gate_up_),
                               reinterpret_cast<int64_t>(down_), static_cast<int64_t>(activation_));
}

}  // namespace maniple

#include "objectives/causal_lm.h"

#include <limits>

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

at::Tensor max_over(const at::Tensor& x, Communicator& tp) {
  at::Tensor all = at::empty({tp.size(), x.numel()}, x.options());
  tp.all_gather(x, all);
  return std::get<0>(all.max(0));
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& target,
                            int64_t head_pointer, int64_t vocab_size, double scale, int64_t tp_pointer,
                            int64_t sums_pointer, int64_t chunk, bool training) {
    auto& head = *reinterpret_cast<Parameter*>(head_pointer);
    auto& tp = *reinterpret_cast<Communicator*>(tp_pointer);
    auto& sums = *reinterpret_cast<CrossEntropySums*>(sums_pointer);
    const auto wide = head.grad.scalar_type();
    const int64_t T = h.size(0), first = head.offset[0];
    const int64_t rows = std::max<int64_t>(0, std::min(head.shape[0], vocab_size - first));
    const at::Tensor W = head.value.narrow(0, 0, rows);
    at::Tensor dh = training ? at::empty_like(h) : at::Tensor();
    double loss = 0;
    for (int64_t begin = 0; begin < T; begin += chunk) {
      const int64_t n = std::min(chunk, T - begin);
      const at::Tensor x = h.narrow(0, begin, n), t = target.narrow(0, begin, n);
      at::Tensor z = at::mm(x, W.t()).to(wide);
      at::Tensor top = std::get<0>(z.max(1));
      if (tp.size() > 1) top = max_over(top, tp);
      z.sub_(top.unsqueeze(1));
      const at::Tensor valid = t >= 0;
      const at::Tensor mine = valid.logical_and(t >= first).logical_and(t < first + rows);
      const at::Tensor column = (t - first).clamp(0, rows - 1).unsqueeze(1);
      at::Tensor chosen = z.gather(1, column).squeeze(1) * mine.to(wide);
      z.exp_();
      at::Tensor total = z.sum(1);
      if (tp.size() > 1) {
        const at::Tensor both = tp.all_reduce_ordered(at::stack({chosen, total}));
        chosen = both[0];
        total = both[1];
      }
      const at::Tensor weight = valid.to(wide);
      loss += ((total.log() - chosen) * weight).to(at::kDouble).sum().item<double>();
      sums.num_targets += valid.sum().item<int64_t>();
      if (!training) continue;
      z.mul_((weight * scale / total).unsqueeze(1));
      z.scatter_add_(1, column, (mine.to(wide) * -scale).unsqueeze(1));
      const at::Tensor dz = z.to(h.scalar_type());
      at::Tensor out = dh.narrow(0, begin, n);
      at::mm_out(out, dz, W);
      at::Tensor grad = head.grad.narrow(0, 0, rows);
      if (dz.scalar_type() == wide)
        grad.addmm_(dz.t(), x);
      else
        grad.add_(at::mm(dz.t(), x));
    }
    sums.loss += loss;
    ctx->save_for_backward({dh});
    return at::scalar_tensor(loss * scale, at::TensorOptions(wide));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list&) {
    return {ctx->get_saved_variables()[0], {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor cross_entropy(const at::Tensor& h_TD, Parameter& head, int64_t vocab_size,
                         const at::Tensor& target_T, double scale, Communicator& tp,
                         CrossEntropySums& sums, int64_t chunk_tokens) {
  const bool training = at::GradMode::is_enabled();
  return CrossEntropy::apply(enter_tensor_parallel(h_TD, tp), target_T,
                             reinterpret_cast<int64_t>(&head), vocab_size, scale,
                             reinterpret_cast<int64_t>(&tp), reinterpret_cast<int64_t>(&sums),
                             chunk_tokens, training);
}

}  // namespace maniple

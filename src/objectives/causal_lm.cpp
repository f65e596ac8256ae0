#include "objectives/causal_lm.h"

#include "kernels/gemm.h"
#include "kernels/softmax_loss.h"
#include "objectives/vocabulary.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// The statistics of whole rows from those of everybody's columns. Collective over tp.
void combine(SoftmaxStats& s, Communicator& tp) {
  if (tp.size() == 1) return;
  const at::Tensor top = max_over(s.top, tp);
  const at::Tensor both =
      tp.all_reduce_ordered(at::stack({s.total * (s.top - top).exp(), s.chosen}));
  s = {top, both[0], both[1]};
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& target,
                            int64_t head_pointer, int64_t vocab_size, double scale, int64_t tp_pointer,
                            int64_t sums_pointer, bool training) {
    auto& head = *reinterpret_cast<Parameter*>(head_pointer);
    auto& tp = *reinterpret_cast<Communicator*>(tp_pointer);
    auto& sums = *reinterpret_cast<CrossEntropySums*>(sums_pointer);
    const auto wide = head.grad.scalar_type();
    const HeadPart part(head, vocab_size);
    const int64_t T = h.size(0), rows = part.rows;
    const at::Tensor& W = part.weight;
    at::Tensor dh = training ? at::empty_like(h) : at::Tensor();
    const int64_t chunk =
        chunk_tokens(head.shape[0], static_cast<int64_t>(head.grad.element_size()));
    const at::Tensor logits = at::empty({std::min(chunk, T), rows}, h.options().dtype(wide));
    double loss = 0;
    for (int64_t begin = 0; begin < T; begin += chunk) {
      const int64_t n = std::min(chunk, T - begin);
      const at::Tensor x = h.narrow(0, begin, n), t = target.narrow(0, begin, n);
      const at::Tensor z = logits.narrow(0, 0, n), valid = t >= 0;
      multiply(x, W.t(), z);
      const at::Tensor column = part.columns(t);
      SoftmaxStats s = softmax_stats(z, column);
      combine(s, tp);
      loss += ((s.total.log() + s.top - s.chosen) * valid).to(at::kDouble).sum().item<double>();
      sums.num_targets += valid.sum().item<int64_t>();
      if (!training) continue;
      const at::Tensor dz = softmax_gradient(z, s.top, valid.to(wide) * scale / s.total, column, scale,
                                             h.scalar_type());
      multiply(dz, W, dh.narrow(0, begin, n));
      multiply_add(dz.t(), x, head.grad.narrow(0, 0, rows));
    }
    sums.loss += loss;
    ctx->save_for_backward({dh});
    return at::scalar_tensor(loss * scale, h.options().dtype(wide));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list&) {
    return {ctx->get_saved_variables()[0], {}, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor cross_entropy(const at::Tensor& h_TD, Parameter& head, int64_t vocab_size,
                         const at::Tensor& target_T, double scale, Communicator& tp,
                         CrossEntropySums& sums) {
  const bool training = at::GradMode::is_enabled();
  return CrossEntropy::apply(enter_tensor_parallel(h_TD, tp), target_T,
                             reinterpret_cast<int64_t>(&head), vocab_size, scale,
                             reinterpret_cast<int64_t>(&tp), reinterpret_cast<int64_t>(&sums),
                             training);
}

}  // namespace maniple

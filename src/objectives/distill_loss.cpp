#include "objectives/distill_loss.h"

#include "kernels/gemm.h"
#include "kernels/softmax_loss.h"
#include "objectives/vocabulary.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr double kMostSupport = 1 - 1e-6;  // of p on the ghost variant's support

struct Arguments {
  Parameter& head;
  int64_t vocab_size;
  const DistillTargets& targets;
  double alpha, temperature, scale;
  Communicator& tp;
  DistillSums& sums;
  bool training;
};

// The student's logits of a chunk of tokens, and what the whole vocabulary says about them.
struct Soft {
  at::Tensor z;       // [n, V/tp]
  at::Tensor top;     // [n]: of all ranks
  at::Tensor total;   // [n]: sum of exp(z - top) over all ranks
  at::Tensor chosen;  // [n]: z of the label, 0 where it is masked
};

// Makes what `with_top(top)` stacks [m, n], and the soft-max's own sums, whole. Collective over tp.
template <typename Extra>
Soft make_soft(const at::Tensor& z, const at::Tensor& column, Communicator& tp, at::Tensor& extra,
               const Extra& with_top) {
  const SoftmaxStats s = softmax_stats(z, column);
  Soft out{z, max_over(s.top, tp), s.total, s.chosen};
  extra = with_top(out.top);
  if (tp.size() == 1) return out;
  at::Tensor parts = at::stack({s.total * (s.top - out.top).exp(), s.chosen});
  if (extra.defined()) parts = at::cat({parts, extra});
  parts = tp.all_reduce_ordered(parts);
  out.total = parts[0];
  out.chosen = parts[1];
  if (extra.defined()) extra = parts.narrow(0, 2, parts.size(0) - 2);
  return out;
}
Soft make_soft(const at::Tensor& z, const at::Tensor& column, Communicator& tp) {
  at::Tensor none;
  return make_soft(z, column, tp, none, [](const at::Tensor&) { return at::Tensor(); });
}

// What a chunk gives: losses per token (unmasked), and the gradient of
//   ce_weight CE + kd_weight KD  with respect to z, times scale, in type `type`.
struct ChunkLoss {
  at::Tensor ce, kd, entropy;  // [n], of temperature 1 (kd, entropy: not yet times temperature^2)
};

double sum_of(const at::Tensor& per_token, const at::Tensor& valid) {
  return at::where(valid, per_token, 0).to(at::kDouble).sum().item<double>();
}

struct SparseChunk {
  at::Tensor id, column, here, weight, total, rest;  // [n, K] and [n]; here: column on this rank
};
SparseChunk narrow(const SparseTargets& t, const HeadPart& part, int64_t begin, int64_t n) {
  const at::Tensor id = t.id.narrow(0, begin, n), column = part.columns(id);
  return {id, column.clamp_min(0), column >= 0, t.weight.narrow(0, begin, n),
          t.total.narrow(0, begin, n), t.rest.narrow(0, begin, n)};
}

// Sparse targets: loss of temperature 1 and gradient in z of (ce_weight CE + kd_weight KD) * scale.
struct SparseLoss {
  SparseLoss(const SparseChunk& t, const at::Tensor& z, const at::Tensor& label_column, Communicator& tp)
      : t(t) {
    at::Tensor sums;
    soft = make_soft(z, label_column, tp, sums, [&](const at::Tensor& top) {
      above = z.gather(1, t.column) - top.unsqueeze(1);
      const at::Tensor pull = (t.weight * above * t.here).sum(1);
      const at::Tensor support = (above.exp() * t.here * (t.weight > 0)).sum(1);
      return at::stack({pull, support});
    });
    const at::Tensor log_total = soft.total.log();
    kd = t.total * log_total - sums[0];
    on_support = (sums[1] / soft.total).clamp_max(kMostSupport);
    kd = kd - t.rest * at::log1p(-on_support);
  }

  at::Tensor gradient(double ce_weight, double kd_weight, double scale, const at::Tensor& valid,
                      at::ScalarType type) const {
    const at::Tensor unit = valid.to(soft.z.scalar_type()) * scale / soft.total;
    const at::Tensor inside = (t.total + t.rest) * kd_weight + ce_weight;
    const at::Tensor outside = inside - t.rest * kd_weight / (1 - on_support);
    at::Tensor dz = softmax_gradient(soft.z, soft.top, unit * outside,
                                     at::full({soft.z.size(0)}, -1, t.column.options()), 0, type);
    // The entries anew, each rounded once.
    at::Tensor target = t.weight * kd_weight;
    target.select(1, 0).add_(ce_weight);
    const at::Tensor factor =
        at::where(t.weight > 0, (unit * inside).unsqueeze(1), (unit * outside).unsqueeze(1));
    const at::Tensor value = above.exp() * factor - target * (valid.unsqueeze(1) * scale);
    const at::Tensor place =
        t.column + at::arange(dz.size(0), t.column.options()).unsqueeze(1) * dz.size(1);
    const at::Tensor there = t.here.view({-1}).nonzero().squeeze(1);
    dz.view({-1}).index_copy_(0, place.view({-1}).index_select(0, there),
                              value.to(type).view({-1}).index_select(0, there));
    return dz;
  }

  const SparseChunk& t;
  Soft soft;
  at::Tensor above, kd, on_support;
};

// The teacher's whole distribution.
struct FullLoss {
  FullLoss(const at::Tensor& teacher_z, const at::Tensor& z, const at::Tensor& label_column,
           Communicator& tp) {
    const Soft teacher = make_soft(teacher_z, at::full_like(label_column, -1), tp);
    const at::Tensor above = teacher.z - teacher.top.unsqueeze(1);
    p = above.exp() / teacher.total.unsqueeze(1);
    at::Tensor sums;
    soft = make_soft(z, label_column, tp, sums, [&](const at::Tensor& top) {
      return at::stack({(p * (z - top.unsqueeze(1))).sum(1), (p * above).sum(1)});
    });
    kd = soft.total.log() - sums[0];
    entropy = teacher.total.log() - sums[1];
  }

  at::Tensor gradient(double ce_weight, double kd_weight, double scale, const at::Tensor& valid,
                      const at::Tensor& label_column, at::ScalarType type) const {
    const at::Tensor unit = valid.to(soft.z.scalar_type()) * scale;
    const at::Tensor dz =
        softmax_gradient(soft.z, soft.top, unit * (ce_weight + kd_weight) / soft.total,
                         at::where(valid, label_column, -1), ce_weight * scale, soft.z.scalar_type());
    return (dz - p * (unit * kd_weight).unsqueeze(1)).to(type);
  }

  at::Tensor p;  // [n, V/tp]: the teacher's
  Soft soft;
  at::Tensor kd, entropy;
};

struct Distill : torch::autograd::Function<Distill> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& target,
                            int64_t arguments) {
    const auto& a = *reinterpret_cast<const Arguments*>(arguments);
    const auto wide = a.head.grad.scalar_type();
    const HeadPart part(a.head, a.vocab_size);
    const int64_t T = h.size(0);
    const bool full = a.targets.head != nullptr;
    const double tau = a.temperature, square = tau * tau;
    at::Tensor dh = a.training ? at::empty_like(h) : at::Tensor();
    const int64_t chunk =
        chunk_tokens(a.head.shape[0], static_cast<int64_t>(a.head.grad.element_size()));
    auto logits_of = [&](const at::Tensor& x, const at::Tensor& W) {
      at::Tensor z = at::empty({x.size(0), W.size(0)}, x.options().dtype(wide));
      multiply(x, W.t(), z);
      return z;
    };
    double scaled_loss = 0;
    for (int64_t begin = 0; begin < T; begin += chunk) {
      const int64_t n = std::min(chunk, T - begin);
      const at::Tensor x = h.narrow(0, begin, n), label = target.narrow(0, begin, n);
      const at::Tensor valid = label >= 0, column = part.columns(label);
      const at::Tensor z = logits_of(x, part.weight);
      const at::Tensor cool = tau == 1 ? z : z / tau;
      // At temperature 1 one soft-max serves both losses; else the cross-entropy has its own.
      const double ce_weight = tau == 1 ? a.alpha : 0, kd_weight = (1 - a.alpha) * tau;
      at::Tensor dz, kd, entropy;
      Soft soft;
      if (full) {
        const HeadPart teacher(*a.targets.head, a.vocab_size);
        at::Tensor teacher_z = logits_of(a.targets.h_TD.narrow(0, begin, n), teacher.weight);
        if (tau != 1) teacher_z.div_(tau);
        const FullLoss loss(teacher_z, cool, column, a.tp);
        soft = loss.soft;
        kd = loss.kd;
        entropy = loss.entropy;
        if (a.training)
          dz = loss.gradient(ce_weight, kd_weight, a.scale, valid, column,
                             tau == 1 ? h.scalar_type() : wide);
      } else {
        const SparseChunk t = narrow(a.targets.sparse, part, begin, n);
        const SparseLoss loss(t, cool, column, a.tp);
        soft = loss.soft;
        kd = loss.kd;
        entropy = a.targets.sparse.entropy.narrow(0, begin, n);
        if (a.training)
          dz = loss.gradient(ce_weight, kd_weight, a.scale, valid,
                             tau == 1 ? h.scalar_type() : wide);
      }
      if (tau != 1) {
        soft = make_soft(z, column, a.tp);
        if (a.training && a.alpha > 0)
          dz = dz + softmax_gradient(z, soft.top, valid.to(wide) * (a.scale * a.alpha) / soft.total,
                                     column, a.scale * a.alpha, wide);
      }
      const double ce = sum_of(soft.total.log() + soft.top - soft.chosen, valid);
      const double distilled = sum_of(kd, valid) * square;
      const double loss = a.alpha * ce + (1 - a.alpha) * distilled;
      a.sums.ce += ce;
      a.sums.kd += distilled;
      a.sums.entropy += sum_of(entropy, valid) * square;
      a.sums.loss += loss;
      a.sums.num_targets += valid.sum().item<int64_t>();
      scaled_loss += loss * a.scale;
      if (!a.training) continue;
      dz = dz.to(h.scalar_type());
      multiply(dz, part.weight, dh.narrow(0, begin, n));
      multiply_add(dz.t(), x, a.head.grad.narrow(0, 0, part.rows));
    }
    ctx->save_for_backward({dh});
    return at::scalar_tensor(scaled_loss, h.options().dtype(wide));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list&) {
    return {ctx->get_saved_variables()[0], {}, {}};
  }
};

}  // namespace

at::Tensor distill_loss(const at::Tensor& h_TD, Parameter& head, int64_t vocab_size,
                        const at::Tensor& target_T, const DistillTargets& targets, double alpha,
                        double temperature, double scale, Communicator& tp, DistillSums& sums) {
  const Arguments a{head,  vocab_size, targets, alpha, temperature,
                    scale, tp,         sums,    at::GradMode::is_enabled()};
  return Distill::apply(enter_tensor_parallel(h_TD, tp), target_T, reinterpret_cast<int64_t>(&a));
}

}  // namespace maniple

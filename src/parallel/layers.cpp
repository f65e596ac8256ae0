#include "parallel/layers.h"

#include "core/errors.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rows.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
template <typename F>
using Function = torch::autograd::Function<F>;

template <typename T>
int64_t as_int(T* pointer) {
  return reinterpret_cast<int64_t>(pointer);
}
template <typename T>
T& saved(AutogradContext* ctx, const char* name) {
  return *reinterpret_cast<T*>(ctx->saved_data[name].toInt());
}

// grad += product, with fp32 (fp64) accumulation over micro-batches.
void accumulate(Parameter& p, const at::Tensor& g) { p.grad.add_(g.view(p.grad.sizes())); }

struct Linear : Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t weight, int64_t bias) {
    auto& w = *reinterpret_cast<Parameter*>(weight);
    ctx->saved_data["weight"] = weight;
    ctx->saved_data["bias"] = bias;
    ctx->save_for_backward({x});
    const at::Tensor x2 = x.reshape({-1, x.size(-1)}).to(w.value.scalar_type());
    const at::Tensor y = at::empty({x2.size(0), w.value.size(0)}, x2.options());
    multiply(x2, w.value.t(), y);
    if (bias) y.add_(reinterpret_cast<Parameter*>(bias)->value);
    auto shape = x.sizes().vec();
    shape.back() = w.value.size(0);
    return y.view(shape);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    auto& w = saved<Parameter>(ctx, "weight");
    const at::Tensor x = ctx->get_saved_variables()[0];
    const at::Tensor dy2 = grads[0].reshape({-1, grads[0].size(-1)});
    const at::Tensor x2 = x.reshape({-1, x.size(-1)}).to(w.value.scalar_type());
    multiply_add(dy2.t(), x2, w.grad);
    if (ctx->saved_data["bias"].toInt()) {
      auto& b = saved<Parameter>(ctx, "bias");
      accumulate(b, dy2.to(b.grad.scalar_type()).sum(0));
    }
    const at::Tensor dx = at::empty({x2.size(0), x2.size(1)}, x2.options());
    multiply(dy2, w.value, dx);
    return {dx.view(x.sizes()).to(x.scalar_type()), {}, {}};
  }
};

struct RmsNorm : Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t weight, double eps,
                            bool plus_one) {
    auto& w = *reinterpret_cast<Parameter*>(weight);
    const at::Tensor x2 = x.reshape({-1, x.size(-1)});
    const RmsNormResult out = rms_norm_forward(x2, w.value, eps, plus_one);
    ctx->saved_data["weight"] = weight;
    ctx->saved_data["plus_one"] = plus_one;
    ctx->save_for_backward({x2, out.rstd});
    return out.y.view(x.sizes());
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    auto& w = saved<Parameter>(ctx, "weight");
    const auto variables = ctx->get_saved_variables();
    const at::Tensor dy2 = grads[0].reshape(variables[0].sizes());
    const at::Tensor dx = rms_norm_backward(dy2, variables[0], variables[1], w.value,
                                            ctx->saved_data["plus_one"].toBool(), w.grad);
    return {dx.view(grads[0].sizes()), {}, {}, {}};
  }
};

struct Embed : Function<Embed> {
  // `root` requires a gradient, which makes autograd call backward: ids have none.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& /*root*/, const at::Tensor& ids,
                            int64_t table, int64_t tp) {
    auto& t = *reinterpret_cast<Parameter*>(table);
    auto& comm = *reinterpret_cast<Communicator*>(tp);
    const int64_t rows = t.shape[0];
    const at::Tensor local = ids.reshape({-1}) - t.offset[0];
    const at::Tensor mine = (local >= 0).logical_and(local < rows);
    ctx->saved_data["table"] = table;
    ctx->save_for_backward({local, mine});
    at::Tensor y = t.value.index_select(0, local.clamp(0, rows - 1));
    if (comm.size() > 1) {
      y.mul_(mine.to(y.scalar_type()).unsqueeze(1));
      y = comm.all_reduce_ordered(y);  // one addend is not zero: exact
    }
    auto shape = ids.sizes().vec();
    shape.push_back(t.shape[1]);
    return y.view(shape);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    auto& t = saved<Parameter>(ctx, "table");
    const auto variables = ctx->get_saved_variables();
    // Rows of other ranks go to the index that is left out.
    const at::Tensor index = at::where(variables[1], variables[0], t.shape[0]);
    const at::Tensor dy =
        grads[0].reshape({-1, t.shape[1]}).to(t.grad.scalar_type()).contiguous();
    add_rows(dy, index, t.grad);
    return {{}, {}, {}, {}};
  }
};

struct EnterTp : Function<EnterTp> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t tp) {
    ctx->saved_data["tp"] = tp;
    return x.view_as(x);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    return {saved<Communicator>(ctx, "tp").all_reduce_ordered(grads[0]), {}};
  }
};

struct LeaveTp : Function<LeaveTp> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& x, int64_t tp) {
    return reinterpret_cast<Communicator*>(tp)->all_reduce_ordered(x);
  }
  static tensor_list backward(AutogradContext*, const tensor_list& grads) { return {grads[0], {}}; }
};

at::Tensor chunk_of(const at::Tensor& x, Communicator& tp) {
  const int64_t n = x.size(0), part = (n + tp.size() - 1) / tp.size();
  const int64_t begin = std::min(n, part * tp.rank()), end = std::min(n, begin + part);
  return x.narrow(0, begin, end - begin);
}

at::Tensor gather_chunks(const at::Tensor& x, int64_t num_tokens, Communicator& tp) {
  const int64_t part = (num_tokens + tp.size() - 1) / tp.size(), row = x.numel() / std::max<int64_t>(1, x.size(0));
  std::vector<int64_t> counts(tp.size());
  int64_t width = x.size(0) ? row : 1;
  for (int64_t d = 1; d < x.dim() && !x.size(0); ++d) width *= x.size(d);
  for (int r = 0; r < tp.size(); ++r)
    counts[r] = std::max<int64_t>(0, std::min(part, num_tokens - part * r)) * width;
  auto shape = x.sizes().vec();
  shape[0] = num_tokens;
  at::Tensor out = at::empty(shape, x.options());
  tp.all_gather_v(x.contiguous(), out, counts);
  return out;
}

struct SplitTokens : Function<SplitTokens> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t tp) {
    ctx->saved_data["tp"] = tp;
    ctx->saved_data["n"] = x.size(0);
    return chunk_of(x, *reinterpret_cast<Communicator*>(tp)).clone();
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    return {gather_chunks(grads[0], ctx->saved_data["n"].toInt(), saved<Communicator>(ctx, "tp")), {}};
  }
};

struct GatherTokens : Function<GatherTokens> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t n, int64_t tp) {
    ctx->saved_data["tp"] = tp;
    return gather_chunks(x, n, *reinterpret_cast<Communicator*>(tp));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    return {chunk_of(grads[0], saved<Communicator>(ctx, "tp")).contiguous(), {}, {}};
  }
};

at::Tensor exchange(const at::Tensor& x, const std::vector<int64_t>& send,
                    const std::vector<int64_t>& recv, Communicator& comm) {
  auto shape = x.sizes().vec();
  shape[0] = 0;
  for (int64_t n : recv) shape[0] += n;
  at::Tensor out = at::empty(shape, x.options());
  comm.all_to_all_v(x.contiguous(), send, out, recv);
  return out;
}

struct ExchangeRows : Function<ExchangeRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, std::vector<int64_t> send,
                            std::vector<int64_t> recv, int64_t comm) {
    ctx->saved_data["send"] = send;
    ctx->saved_data["recv"] = recv;
    ctx->saved_data["comm"] = comm;
    return exchange(x, send, recv, *reinterpret_cast<Communicator*>(comm));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    return {exchange(grads[0], ctx->saved_data["recv"].toIntVector(),
                     ctx->saved_data["send"].toIntVector(), saved<Communicator>(ctx, "comm")),
            {}, {}, {}};
  }
};

struct PermuteRows : Function<PermuteRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& index,
                            const at::Tensor& inverse) {
    ctx->save_for_backward({inverse});
    return gather_rows(x, index);
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    return {gather_rows(grads[0], ctx->get_saved_variables()[0]), {}, {}};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, Parameter& weight, Parameter* bias) {
  return Linear::apply(x, as_int(&weight), as_int(bias));
}
at::Tensor rms_norm(const at::Tensor& x, Parameter& weight, double eps, bool plus_one) {
  return RmsNorm::apply(x, as_int(&weight), eps, plus_one);
}
at::Tensor embed(const at::Tensor& ids, Parameter& table, Communicator& tp) {
  at::Tensor root = at::zeros({}, table.value.options());
  if (at::GradMode::is_enabled()) root.requires_grad_();
  return Embed::apply(root, ids, as_int(&table), as_int(&tp));
}
at::Tensor enter_tensor_parallel(const at::Tensor& x, Communicator& tp) {
  return tp.size() == 1 ? x : EnterTp::apply(x, as_int(&tp));
}
at::Tensor leave_tensor_parallel(const at::Tensor& x, Communicator& tp) {
  return tp.size() == 1 ? x : LeaveTp::apply(x, as_int(&tp));
}
at::Tensor split_tokens(const at::Tensor& x, Communicator& tp) {
  return tp.size() == 1 ? x : SplitTokens::apply(x, as_int(&tp));
}
at::Tensor gather_tokens(const at::Tensor& x, int64_t num_tokens, Communicator& tp) {
  return tp.size() == 1 ? x : GatherTokens::apply(x, num_tokens, as_int(&tp));
}
at::Tensor exchange_rows(const at::Tensor& x, const std::vector<int64_t>& send_rows,
                         const std::vector<int64_t>& recv_rows, Communicator& comm) {
  return ExchangeRows::apply(x, send_rows, recv_rows, as_int(&comm));
}
at::Tensor permute_rows(const at::Tensor& x, const at::Tensor& index, const at::Tensor& inverse) {
  return PermuteRows::apply(x, index, inverse);
}

}  // namespace maniple

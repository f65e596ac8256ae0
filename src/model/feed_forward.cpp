#include "model/feed_forward.h"

#include "core/errors.h"
#include "kernels/gemm.h"

namespace maniple {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
using Networks = std::vector<GatedWeights>;

// Calls body(network, its rows [begin, begin + n)) for the networks that have rows.
template <typename Body>
void for_each(Networks& networks, const std::vector<int64_t>& counts, const Body& body) {
  int64_t begin = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    if (counts[e]) body(networks[e], begin, counts[e]);
    begin += counts[e];
  }
}

// Lets a graph node own the function.
struct MakeRows : torch::CustomClassHolder {
  explicit MakeRows(std::function<at::Tensor()> f) : make(std::move(f)) {}
  std::function<at::Tensor()> make;
};

// Written out, since autograd over a loop with concatenation costs several times as much. Backward is
// where a step needs most memory: what is not needed any more goes at once.
struct GatedFeedForward : torch::autograd::Function<GatedFeedForward> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const std::optional<at::Tensor>& weight_or_none,
                            std::vector<int64_t> counts, int64_t networks_pointer, int64_t activation,
                            std::function<at::Tensor()> again) {
    const at::Tensor weight = weight_or_none.value_or(at::Tensor());
    auto& networks = *reinterpret_cast<Networks*>(networks_pointer);
    const int64_t N = x.size(0), D = x.size(1), F = networks[0].down.size(1);
    const at::Tensor h = at::empty({N, 2 * F}, x.options()), y = at::empty({N, D}, x.options());
    std::vector<Product> products;
    for_each(networks, counts, [&](GatedWeights& w, int64_t begin, int64_t n) {
      products.push_back({x.narrow(0, begin, n), w.in.t(), h.narrow(0, begin, n)});
    });
    multiply(products);
    const at::Tensor a = glu_forward(static_cast<Activation>(activation), h, weight);
    products.clear();
    for_each(networks, counts, [&](GatedWeights& w, int64_t begin, int64_t n) {
      products.push_back({a.narrow(0, begin, n), w.down.t(), y.narrow(0, begin, n)});
    });
    multiply(products);
    ctx->save_for_backward({again ? at::Tensor() : x, weight, h});
    if (again)
      ctx->saved_data["again"] = c10::IValue::make_capsule(c10::make_intrusive<MakeRows>(std::move(again)));
    ctx->saved_data["counts"] = counts;
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["networks"] = networks_pointer;
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto variables = ctx->get_saved_variables();
    const at::Tensor &weight = variables[1], &h = variables[2];
    auto& networks = *reinterpret_cast<Networks*>(ctx->saved_data["networks"].toInt());
    const auto counts = ctx->saved_data["counts"].toIntVector();
    const auto activation = static_cast<Activation>(ctx->saved_data["activation"].toInt());
    at::Tensor a = glu_forward(activation, h, weight);  // cheaper again than kept
    at::Tensor da = at::empty_like(a);
    const at::Tensor dy = grads[0].contiguous();
    std::vector<Product> products;
    for_each(networks, counts, [&](GatedWeights& w, int64_t begin, int64_t n) {
      const at::Tensor dy_n = dy.narrow(0, begin, n);
      products.push_back({dy_n, w.down, da.narrow(0, begin, n)});
      products.push_back({dy_n.t(), a.narrow(0, begin, n), w.down_grad, true});
    });
    multiply(products);
    const at::Tensor dweight = glu_backward(activation, da, h, weight), &dh = h;
    products.clear();
    a.reset();
    da.reset();
    at::Tensor x = variables[0];
    if (!x.defined()) {
      const auto again = ctx->saved_data["again"].toCapsule();
      x = static_cast<const MakeRows&>(*again).make();
    }
    for_each(networks, counts, [&](GatedWeights& w, int64_t begin, int64_t n) {
      int64_t column = 0;
      for (const at::Tensor& grad : w.in_grads) {
        products.push_back({dh.narrow(0, begin, n).narrow(1, column, grad.size(0)).t(),
                            x.narrow(0, begin, n), grad, true});
        column += grad.size(0);
      }
    });
    multiply(products);
    products.clear();
    x.reset();
    const at::Tensor dx = at::empty({dh.size(0), networks[0].in.size(1)}, dh.options());
    for_each(networks, counts, [&](GatedWeights& w, int64_t begin, int64_t n) {
      products.push_back({dh.narrow(0, begin, n), w.in, dx.narrow(0, begin, n)});
    });
    multiply(products);
    return {dx, dweight, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor gated_feed_forward(const at::Tensor& x, const at::Tensor& weight,
                              const std::vector<int64_t>& counts, std::vector<GatedWeights>& networks,
                              Activation activation, std::function<at::Tensor()> again) {
  std::optional<at::Tensor> weight_or_none;
  if (weight.defined()) weight_or_none = weight;
  return GatedFeedForward::apply(x, weight_or_none, counts, reinterpret_cast<int64_t>(&networks),
                                 static_cast<int64_t>(activation), std::move(again));
}

DenseFeedForward::DenseFeedForward(const ModelConfig& model, const std::string& prefix,
                                   int64_t width, ParameterStore& store)
    : activation_(model.activation), tp_(store.mesh().tp()) {
  const int64_t tp = store.mesh().shape().tp, index = store.mesh().tp_index();
  MANIPLE_INVARIANT(width % tp == 0, "width {}, tp {}", width, tp);
  const Init normal{Init::kNormal, model.initializer_range};
  const int64_t D = model.hidden_size;
  gate_ = &store.add(prefix + "gate_proj.weight", {width, D}, GradGroup::kSharded, {{0, index, tp}}, normal);
  up_ = &store.add(prefix + "up_proj.weight", {width, D}, GradGroup::kSharded, {{0, index, tp}}, normal);
  down_ = &store.add(prefix + "down_proj.weight", {D, width}, GradGroup::kSharded, {{1, index, tp}}, normal);
}

at::Tensor DenseFeedForward::forward(const at::Tensor& x_in) {
  const at::Tensor x = enter_tensor_parallel(x_in, tp_);
  const at::Tensor x_TD = x.reshape({-1, x.size(-1)});
  if (networks_.empty()) networks_.push_back({{}, {gate_->grad, up_->grad}, down_->value, down_->grad});
  networks_[0].in = at::cat({gate_->value, up_->value});
  const at::Tensor y = gated_feed_forward(x_TD, {}, {x_TD.size(0)}, networks_, activation_);
  return leave_tensor_parallel(y.view(x.sizes()), tp_);
}

}  // namespace maniple

#include "model/recompute.h"

#include "core/errors.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Lets a graph node own the body.
struct BodyHolder : torch::CustomClassHolder {
  explicit BodyHolder(RecomputeBody b) : body(std::move(b)) {}
  RecomputeBody body;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // autograd sees tensors among the arguments, not those inside a list.
  static tensor_list forward(AutogradContext* ctx, const at::Tensor& first,
                             const std::optional<at::Tensor>& second, RecomputeBody body) {
    tensor_list inputs = {first};
    if (second) inputs.push_back(*second);
    ctx->save_for_backward(inputs);
    tensor_list outputs = body(inputs, /*again=*/false);
    ctx->saved_data["body"] =
        c10::IValue::make_capsule(c10::make_intrusive<BodyHolder>(std::move(body)));
    return outputs;
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto holder = ctx->saved_data["body"].toCapsule();
    const RecomputeBody& body = static_cast<const BodyHolder&>(*holder).body;
    tensor_list inputs, wanted;
    for (const at::Tensor& saved : ctx->get_saved_variables()) {
      inputs.push_back(saved.detach());
      if (!saved.requires_grad()) continue;
      inputs.back().requires_grad_();
      wanted.push_back(inputs.back());
    }
    tensor_list outputs;
    {
      const at::AutoGradMode with_graph(true);
      outputs = body(inputs, /*again=*/true);
    }
    const tensor_list found = torch::autograd::grad(outputs, wanted, grads);
    tensor_list result;
    size_t next = 0;
    for (const at::Tensor& input : inputs)
      result.push_back(input.requires_grad() ? found[next++] : at::Tensor());
    result.resize(3);  // nothing for a missing second one, nor for the body
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, RecomputeBody body) {
  if (!at::GradMode::is_enabled()) return body(inputs, false);
  MANIPLE_INVARIANT(inputs.size() == 1 || inputs.size() == 2, "{} inputs", inputs.size());
  std::optional<at::Tensor> second;
  if (inputs.size() > 1) second = inputs[1];
  return Recompute::apply(inputs[0], second, std::move(body));
}

}  // namespace maniple

#include "moe/all_gather_dispatch.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
using Rows = std::vector<int64_t>;  // of each rank of the group

int64_t total(const Rows& rows) {
  int64_t n = 0;
  for (int64_t r : rows) n += r;
  return n;
}

at::Tensor gather(const at::Tensor& mine, const Rows& rows, Communicator& group) {
  auto shape = mine.sizes().vec();
  int64_t width = 1;
  for (size_t d = 1; d < shape.size(); ++d) width *= shape[d];
  shape[0] = total(rows);
  at::Tensor all = at::empty(shape, mine.options());
  Rows counts = rows;
  for (int64_t& c : counts) c *= width;
  group.all_gather_v(mine.contiguous(), all, counts);
  return all;
}

// The sum over the ranks, in their order, of this rank's rows.
at::Tensor reduce(const at::Tensor& all, const Rows& rows, Communicator& group) {
  const int64_t mine = rows[group.rank()];
  auto shape = all.sizes().vec();
  shape[0] = mine * group.size();
  at::Tensor parts = at::empty(shape, all.options());
  group.all_to_all_v(all.contiguous(), rows, parts, Rows(group.size(), mine));
  at::Tensor sum = parts.narrow(0, 0, mine).clone();
  for (int r = 1; r < group.size(); ++r) sum.add_(parts.narrow(0, r * mine, mine));
  return sum;
}

// Each of the two is the other's backward.
struct GatherRows : torch::autograd::Function<GatherRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& mine, Rows rows,
                            int64_t group) {
    ctx->saved_data["rows"] = rows;
    ctx->saved_data["group"] = group;
    return gather(mine, rows, *reinterpret_cast<Communicator*>(group));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    auto& group = *reinterpret_cast<Communicator*>(ctx->saved_data["group"].toInt());
    return {reduce(grads[0], ctx->saved_data["rows"].toIntVector(), group), {}, {}};
  }
};
struct ReduceRows : torch::autograd::Function<ReduceRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& all, Rows rows, int64_t group) {
    ctx->saved_data["rows"] = rows;
    ctx->saved_data["group"] = group;
    return reduce(all, rows, *reinterpret_cast<Communicator*>(group));
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    auto& group = *reinterpret_cast<Communicator*>(ctx->saved_data["group"].toInt());
    return {gather(grads[0], ctx->saved_data["rows"].toIntVector(), group), {}, {}};
  }
};

}  // namespace

at::Tensor all_gather_dispatch(const at::Tensor& x_TD, const Routing& routing, int64_t first_expert,
                               int64_t num_local, Communicator& group,
                               const ExpertFunction& experts) {
  const int64_t K = routing.experts_TK.size(1), D = x_TD.size(1);
  const auto pointer = reinterpret_cast<int64_t>(&group);
  const auto index = at::TensorOptions(at::kLong);
  at::Tensor sizes = at::empty({group.size()}, index);
  group.all_gather(at::full({1}, x_TD.size(0), index), sizes);
  const Rows rows(sizes.data_ptr<int64_t>(), sizes.data_ptr<int64_t>() + group.size());

  const at::Tensor x = GatherRows::apply(x_TD, rows, pointer);
  // In the accumulation type: the gradient of a weight is summed over ranks.
  const at::Tensor weight = GatherRows::apply(routing.weights_TK, rows, pointer).reshape({-1});
  const at::Tensor expert = gather(routing.experts_TK, rows, group).reshape({-1}) - first_expert;

  // This rank's slots, by expert, then by token.
  const at::Tensor mine = expert.ge(0).logical_and(expert.lt(num_local)).nonzero().squeeze(1);
  const at::Tensor local = expert.index_select(0, mine);
  const at::Tensor slot = mine.index_select(0, std::get<1>(local.sort(/*stable=*/true, 0, false)));
  const at::Tensor token = slot.floor_divide(K);
  const at::Tensor counts = at::bincount(local, {}, num_local).cpu();
  const int64_t* c = counts.data_ptr<int64_t>();
  const at::Tensor y = experts(x.index_select(0, token), weight.index_select(0, slot),
                               std::vector<int64_t>(c, c + num_local));
  const auto wide = weight.scalar_type();
  const at::Tensor partial =
      at::zeros({total(rows), D}, y.options().dtype(wide)).index_add(0, token, y.to(wide));
  return ReduceRows::apply(partial, rows, pointer).to(y.scalar_type());
}

}  // namespace maniple

#include "moe/row_balance.h"

#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "core/errors.h"
#include "core/random.h"
#include "kernels/parallel_tasks.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr int64_t kGroupRows = 64;

uint64_t weight_of(const at::Tensor& x_in, const std::vector<int64_t>& rows) {
  const at::Tensor x = x_in.contiguous();
  const int64_t N = x.size(0);
  std::vector<uint64_t> key;  // of each row
  key.reserve(static_cast<size_t>(N));
  for (size_t i = 0; i < rows.size(); i += 2)
    key.insert(key.end(), static_cast<size_t>(rows[i + 1]),
               (static_cast<uint64_t>(rows[i]) + 1) * kGolden);
  MANIPLE_INVARIANT(static_cast<int64_t>(key.size()) == N, "{} keys of {} rows", key.size(), N);
  if (N == 0) return 0;
  const size_t bytes = x.nbytes() / static_cast<size_t>(N);
  const auto* from = static_cast<const uint8_t*>(x.const_data_ptr());
  std::atomic<uint64_t> weight = 0;  // of integers: in any order
  parallel_ranges(N, kGroupRows, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    for (auto n = static_cast<size_t>(begin); n < static_cast<size_t>(end); ++n)
      sum += mix64(message_hash({from + n * bytes, bytes}) ^ key[n]);
    weight += sum;
  });
  return weight;
}

struct WeighRows : torch::autograd::Function<WeighRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, std::vector<int64_t> rows,
                            bool sends, int64_t balance) {
    auto& sum = *reinterpret_cast<uint64_t*>(balance);
    sum += sends ? weight_of(x, rows) : 0 - weight_of(x, rows);
    ctx->saved_data["rows"] = std::move(rows);
    ctx->saved_data["sends"] = sends;
    ctx->saved_data["balance"] = balance;
    return x;
  }
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const uint64_t weight = weight_of(grads[0], ctx->saved_data["rows"].toIntVector());
    auto& sum = *reinterpret_cast<uint64_t*>(ctx->saved_data["balance"].toInt());
    sum += ctx->saved_data["sends"].toBool() ? 0 - weight : weight;
    return {grads[0], {}, {}, {}};
  }
};

}  // namespace

at::Tensor weigh_rows(const at::Tensor& x, const std::vector<ExpertRows>& rows, Side side,
                      uint64_t& balance) {
  std::vector<int64_t> flat;
  for (const auto& [expert, count] : rows) flat.insert(flat.end(), {expert, count});
  return WeighRows::apply(x, flat, side == Side::kSender, reinterpret_cast<int64_t>(&balance));
}

}  // namespace maniple

#include "objectives/vocabulary.h"

#include <algorithm>

namespace maniple {
namespace {

constexpr int64_t kChunkBytes = int64_t{32} << 20;  // of logits at a time

}  // namespace

HeadPart::HeadPart(const Parameter& head, int64_t vocab_size)
    : first(head.offset[0]),
      rows(std::max<int64_t>(0, std::min(head.shape[0], vocab_size - first))),
      weight(head.value.narrow(0, 0, rows)) {}

at::Tensor HeadPart::columns(const at::Tensor& id) const {
  return at::where((id >= first).logical_and(id < first + rows), id - first, -1);
}

int64_t chunk_tokens(int64_t columns, int64_t element_bytes) {
  return std::max<int64_t>(128, kChunkBytes / (columns * element_bytes) / 128 * 128);
}

at::Tensor max_over(const at::Tensor& x, Communicator& tp) {
  if (tp.size() == 1) return x;
  at::Tensor all = at::empty({tp.size(), x.numel()}, x.options());
  tp.all_gather(x, all);
  return std::get<0>(all.max(0));
}

}  // namespace maniple

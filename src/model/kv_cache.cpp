#include "model/kv_cache.h"

#include <algorithm>

namespace maniple {

std::pair<at::Tensor, at::Tensor> KvCache::append(const at::Tensor& k, const at::Tensor& v,
                                                  int64_t max_before) {
  constexpr int64_t kSmallest = 64;
  const int64_t n = k.size(2);
  if (max_before >= 0) begin_ = std::max(begin_, end_ - max_before);
  const int64_t kept = end_ - begin_;
  if (!k_.defined() || end_ + n > k_.size(2)) {
    // At least twice what is needed, so that copying costs a constant per token.
    const int64_t capacity = std::max(kSmallest, 2 * (kept + n));
    auto grow = [&](at::Tensor& cache, const at::Tensor& like) {
      at::Tensor larger = at::empty({like.size(0), like.size(1), capacity, like.size(3)}, like.options());
      if (kept) larger.narrow(2, 0, kept).copy_(cache.narrow(2, begin_, kept));
      cache = larger;
    };
    grow(k_, k);
    grow(v_, v);
    begin_ = 0;
    end_ = kept;
  }
  k_.narrow(2, end_, n).copy_(k);
  v_.narrow(2, end_, n).copy_(v);
  end_ += n;
  return {k_.narrow(2, begin_, kept + n), v_.narrow(2, begin_, kept + n)};
}

}  // namespace maniple

// device_kernels.h of a build without CUDA.
#include "core/errors.h"
#include "kernels/device_kernels.h"

namespace maniple::device {
namespace {

[[noreturn]] void refuse() { throw InternalError("a tensor on a GPU in a build without CUDA"); }

}  // namespace

void exact_fold(const at::Tensor&, int, int, at::Tensor&, at::Tensor&) { refuse(); }
void exact_decode(const at::Tensor&, int, double, at::Tensor&) { refuse(); }
at::Tensor block_sums_of_squares(const at::Tensor&, int64_t) { refuse(); }
uint64_t hash(const at::Tensor&) { refuse(); }
void adamw(const AdamwStep&, const at::Tensor&, at::Tensor, at::Tensor, at::Tensor, at::Tensor) {
  refuse();
}

}  // namespace maniple::device

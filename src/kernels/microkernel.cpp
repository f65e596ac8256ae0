#include "kernels/microkernel.h"

#include <exception>
#include <vector>

namespace maniple {
namespace {

// The library says that it cannot by throwing.
template <typename T>
bool probe() {
  if (isa() == Isa::kBase) return false;
  try {
    const std::vector<T> a(16 * 2, from_float<T>(1)), panel(2 * kPanel, from_float<T>(2));
    std::vector<float> c(16 * kPanel);
    brgemm(16, 2, 2, kPanel, false, a.data(), panel.data(), c.data());
    release_microkernel<T>();
    return c[0] == 4 && c.back() == 4;
  } catch (const std::exception&) {  // LibTorch's own, or oneDNN's "could not generate a kernel"
    return false;
  }
}

}  // namespace

bool has_microkernel(at::ScalarType type) {
  static const bool f32 = probe<float>(), bf16 = probe<bf16_t>();
  return type == at::kFloat ? f32 : type == at::kBFloat16 && bf16;
}

}  // namespace maniple

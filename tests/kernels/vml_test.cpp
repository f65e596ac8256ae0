// cmake/vml.cpp: MKL has chosen the kernels of its vector functions before there are threads.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>

namespace {

// What MKL's choice is kept in: -1 before it. Found through the function that returns it, whose first
// instruction is mov offset(%rip), %eax.
const int* chosen_kernels() {
  const auto* code = static_cast<const unsigned char*>(dlsym(RTLD_DEFAULT, "mkl_vml_serv_cpu_detect"));
  if (code == nullptr || code[0] != 0x8b || code[1] != 0x05) return nullptr;
  int offset;
  std::memcpy(&offset, code + 2, sizeof offset);
  return reinterpret_cast<const int*>(code + 6 + offset);
}

TEST(VectorMath, KernelsAreChosenBeforeMain) {
  const int* chosen = chosen_kernels();
  if (chosen == nullptr) GTEST_SKIP() << "this LibTorch has no MKL, or another one";
  EXPECT_NE(*chosen, -1);
}

}  // namespace

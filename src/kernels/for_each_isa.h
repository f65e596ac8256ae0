// Compiles the file MANIPLE_BODIES once per instruction set: as static members of BaseBodies,
// Avx2Bodies and Avx512Bodies, each beside the vector type of simd_bodies.h. (A function that is
// inlined into one of another instruction set has lost its vectors by then; hence whole copies.)
//
//   #define MANIPLE_BODIES "kernels/norm_bodies.h"
//   #include "kernels/for_each_isa.h"
//   with_isa([&](auto bodies) { bodies.template forward<T>(...); });
#include <cstdint>
#include <cstring>

#include "kernels/bf16.h"
#include "kernels/isa.h"

namespace maniple {
namespace {

struct BaseBodies {
#include "kernels/simd_bodies.h"
#include MANIPLE_BODIES
};

#if MANIPLE_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
struct Avx2Bodies {
#include "kernels/simd_bodies.h"
#include MANIPLE_BODIES
};
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
struct Avx512Bodies {
#include "kernels/simd_bodies.h"
#include MANIPLE_BODIES
};
#pragma GCC pop_options
#endif

// Calls body(XBodies{}) for the best set of this processor.
template <typename Body>
void with_isa(const Body& body) {
#if MANIPLE_X86
  if (isa() == Isa::kAvx512) return body(Avx512Bodies{});
  if (isa() == Isa::kAvx2) return body(Avx2Bodies{});
#endif
  body(BaseBodies{});
}

}  // namespace
}  // namespace maniple

// One source, several instruction sets: dispatch<Body>(args...) runs the copy of Body::run that was
// compiled for the best set of this processor. Body::run must be MANIPLE_INLINE and call only
// inlined functions. Plain calls and not ifuncs, which run before a sanitizer is ready.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MANIPLE_X86 1
#define MANIPLE_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")))
#define MANIPLE_AVX2 __attribute__((target("avx2,fma")))
#else
#define MANIPLE_X86 0
#endif
#define MANIPLE_INLINE __attribute__((always_inline)) inline

namespace maniple {

enum class Isa { kBase, kAvx2, kAvx512 };

inline Isa detect_isa() {
#if MANIPLE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBase;
}

inline Isa isa() {
  static const Isa value = detect_isa();
  return value;
}

#if MANIPLE_X86
template <typename Body, typename... Args>
MANIPLE_AVX512 auto run_avx512(Args... args) {
  return Body::run(args...);
}
template <typename Body, typename... Args>
MANIPLE_AVX2 auto run_avx2(Args... args) {
  return Body::run(args...);
}
#endif

template <typename Body, typename... Args>
auto dispatch(Args... args) {
#if MANIPLE_X86
  if (isa() == Isa::kAvx512) return run_avx512<Body>(args...);
  if (isa() == Isa::kAvx2) return run_avx2<Body>(args...);
#endif
  return Body::run(args...);
}

}  // namespace maniple

// Compiled once per instruction set by kernels/for_each_isa.h.

// c (+)= scratch rows, or its rounding.
template <typename T>
static void store_tile(const float* from, int64_t M, int64_t N, T* c, int64_t ldc, bool add) {
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) {
      const float x = from[i * kPanel + j];
      c[i * ldc + j] = from_float<T>(add ? to_float(c[i * ldc + j]) + x : x);
    }
}

// Compiled once per instruction set by kernels/for_each_isa.h.

template <typename T>
static void sum_of_rows(const T* x, const int64_t* index, T* y, int64_t rows, int64_t K, int64_t D) {
  for (int64_t r = 0; r < rows; ++r, index += K, y += D)
    for (int64_t i = 0; i < D; i += kLanes) {
      Vec sum = load_upto(x + index[0] * D + i, D - i);
      for (int64_t k = 1; k < K; ++k) sum += load_upto(x + index[k] * D + i, D - i);
      store_upto(y + i, sum, D - i);
    }
}

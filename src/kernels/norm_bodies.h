// Compiled once per instruction set by kernels/for_each_isa.h.

template <typename T>
static void forward_rows(const T* x, const float* w, T* y, float* rstd, int64_t rows, int64_t D,
                         float eps, bool plus_one) {
  for (int64_t r = 0; r < rows; ++r, x += D, y += D) {
    Vec squares = {};
    for (int64_t i = 0; i < D; i += kLanes) {
      const Vec v = load_upto(x + i, D - i);
      squares += v * v;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum_of(squares) / static_cast<float>(D) + eps);
    rstd[r] = scale;
    for (int64_t i = 0; i < D; i += kLanes) {
      const Vec u = load_upto(x + i, D - i) * scale, weight = load_upto(w + i, D - i);
      store_upto(y + i, plus_one ? u * weight : rounded_to<T>(u) * weight, D - i);
    }
  }
}

// dw: [D], of this group of rows alone.
template <typename T>
static void backward_rows(const T* dy, const T* x, const float* rstd, const float* w, T* dx,
                          float* dw, int64_t rows, int64_t D) {
  for (int64_t r = 0; r < rows; ++r, x += D, dy += D, dx += D) {
    const float scale = rstd[r];
    Vec dots = {};
    for (int64_t i = 0; i < D; i += kLanes) {
      const Vec u = load_upto(x + i, D - i) * scale, g = load_upto(dy + i, D - i);
      store_upto(dw + i, load_upto(dw + i, D - i) + g * u, D - i);
      dots += g * load_upto(w + i, D - i) * u;
    }
    const float mean = sum_of(dots) / static_cast<float>(D);
    for (int64_t i = 0; i < D; i += kLanes) {
      const Vec u = load_upto(x + i, D - i) * scale;
      const Vec du = load_upto(dy + i, D - i) * load_upto(w + i, D - i);
      store_upto(dx + i, (du - u * mean) * scale, D - i);
    }
  }
}

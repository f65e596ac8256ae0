// Compiled once per instruction set by kernels/for_each_isa.h.

template <typename T>
static void rotate_heads(const T* x, const T* cos, const T* sin, float sign, T* y,
                         int64_t positions, int64_t heads, int64_t half) {
  for (int64_t s = 0; s < positions; ++s, cos += half, sin += half)
    for (int64_t h = 0; h < heads; ++h, x += 2 * half, y += 2 * half)
      for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t n = half - i;
        const Vec c = load_upto(cos + i, n), t = load_upto(sin + i, n) * sign;
        const Vec a = load_upto(x + i, n), b = load_upto(x + half + i, n);
        store_upto(y + i, a * c - b * t, n);
        store_upto(y + half + i, b * c + a * t, n);
      }
}

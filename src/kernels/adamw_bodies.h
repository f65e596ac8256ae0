// Compiled once per instruction set by kernels/for_each_isa.h.

MANIPLE_INLINE static float root_of(float x) { return __builtin_sqrtf(x); }
MANIPLE_INLINE static double root_of(double x) { return __builtin_sqrt(x); }

template <typename T>
static void update(const AdamwStep& s, int64_t n, const T* gradient, T* master, T* m, T* v) {
  const T keep = static_cast<T>(1 - s.lr * s.weight_decay);
  const T b1 = static_cast<T>(s.beta1), b2 = static_cast<T>(s.beta2);
  const T a1 = static_cast<T>(1 - s.beta1), a2 = static_cast<T>(1 - s.beta2);
  const T rate = static_cast<T>(s.lr / s.correction1);
  const T root = static_cast<T>(1 / root_of(s.correction2));
  const T eps = static_cast<T>(s.eps), factor = static_cast<T>(s.gradient_factor);
  for (int64_t i = 0; i < n; ++i) {
    const T g = gradient[i] * factor;
    const T mean = b1 * m[i] + a1 * g, square = b2 * v[i] + a2 * (g * g);
    m[i] = mean;
    v[i] = square;
    master[i] = master[i] * keep - rate * mean / (root_of(square) * root + eps);
  }
}

template <typename T>
static void round_to_bf16(const T* from, bf16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(static_cast<float>(from[i]));
}

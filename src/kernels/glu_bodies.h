// Compiled once per instruction set by kernels/for_each_isa.h.

struct Values {
  Vec value, slope;
};

// act(x) and act'(x).
template <Activation A>
MANIPLE_INLINE static Values activation_of(Vec x) {
  if constexpr (A == Activation::kSilu) {
    const Vec s = 1.0f / (1.0f + exp_of(-x));
    return {x * s, s * (1.0f + x * (1.0f - s))};
  } else {  // 0.5 x (1 + tanh(z)), z = sqrt(2 / pi) (x + 0.044715 x^3); (1 + tanh z) / 2 = 1 / (1 + e^-2z)
    constexpr float kRoot = 0.7978845608f, kCubic = 0.044715f;
    const Vec z = kRoot * (x + kCubic * x * x * x);
    const Vec s = 1.0f / (1.0f + exp_of(-2.0f * z));
    const Vec dz = kRoot * (1.0f + 3.0f * kCubic * x * x);
    return {x * s, s + 2.0f * x * s * (1.0f - s) * dz};
  }
}

template <typename T, Activation A>
static void forward_rows(const T* h, const float* weight, T* y, int64_t rows, int64_t F) {
  for (int64_t r = 0; r < rows; ++r, h += 2 * F, y += F) {
    const float p = weight ? weight[r] : 1.0f;
    for (int64_t i = 0; i < F; i += kLanes) {
      const Vec gate = load_upto(h + i, F - i), up = load_upto(h + F + i, F - i);
      store_upto(y + i, activation_of<A>(gate).value * up * p, F - i);
    }
  }
}

template <typename T, Activation A>
static void backward_rows(const T* dy, T* h, const float* weight, float* dweight, int64_t rows,
                          int64_t F) {
  for (int64_t r = 0; r < rows; ++r, h += 2 * F, dy += F) {
    const float p = weight ? weight[r] : 1.0f;
    Vec dots = {};
    for (int64_t i = 0; i < F; i += kLanes) {
      const Vec gate = load_upto(h + i, F - i), up = load_upto(h + F + i, F - i);
      const Vec g = load_upto(dy + i, F - i);
      const Values a = activation_of<A>(gate);
      dots += g * a.value * up;
      const Vec scaled = g * p;
      store_upto(h + i, scaled * up * a.slope, F - i);
      store_upto(h + F + i, scaled * a.value, F - i);
    }
    if (dweight) dweight[r] = sum_of(dots);
  }
}

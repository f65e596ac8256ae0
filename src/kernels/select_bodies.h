// Compiled once per instruction set by kernels/for_each_isa.h.

// exp(power (z - top)) of n <= kSumColumns columns; the rest of `weight` up to a multiple of kLanes is 0.
MANIPLE_INLINE static void weights(const float* z, int64_t n, float top, float power, float* weight) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec w = exp_of((load_upto(z + i, n - i) - top) * power);
    if (n - i < kLanes) {
      float part[kLanes] = {};
      store_part(part, w, n - i);
      w = load(part);
    }
    store(weight + i, w);
  }
}

static void running_sums(const float* z, float power, float* top, double* sums, int64_t rows,
                         int64_t V) {
  const int64_t blocks = (V + kSumColumns - 1) / kSumColumns;
  float weight[kSumColumns];
  for (int64_t r = 0; r < rows; ++r, z += V, sums += blocks) {
    Vec tops = splat(z[0]);
    int64_t c = 0;
    for (; c + kLanes <= V; c += kLanes) tops = max_of(tops, load(z + c));
    top[r] = max_of(tops);
    for (; c < V; ++c) top[r] = z[c] > top[r] ? z[c] : top[r];
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t n = std::min(kSumColumns, V - b * kSumColumns);
      weights(z + b * kSumColumns, n, top[r], power, weight);
      Vec lanes = load(weight);
      for (int64_t i = kLanes; i < n; i += kLanes) lanes += load(weight + i);
      sums[b] = sum += static_cast<double>(sum_of(lanes));
    }
  }
}

static void block_weights(const float* z, int64_t n, float top, float power, float* weight) {
  weights(z, n, top, power, weight);
}

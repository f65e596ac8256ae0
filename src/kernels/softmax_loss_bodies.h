// Compiled once per instruction set by kernels/for_each_isa.h.

static void stats(const float* z, const int64_t* column, float* top, float* total,
                  float* chosen, int64_t rows, int64_t V) {
  for (int64_t r = 0; r < rows; ++r, z += V) {
    Vec tops = splat(z[0]);
    int64_t i = 0;
    for (; i + kLanes <= V; i += kLanes) tops = max_of(tops, load(z + i));
    float m = max_of(tops);
    for (; i < V; ++i) m = z[i] > m ? z[i] : m;
    Vec sums = {};
    for (i = 0; i + kLanes <= V; i += kLanes) sums += exp_of(load(z + i) - m);
    if (i < V) {
      float rest[kLanes];
      for (int64_t l = 0; l < kLanes; ++l) rest[l] = i + l < V ? z[i + l] : -1e30f;
      sums += exp_of(load(rest) - m);
    }
    top[r] = m;
    total[r] = sum_of(sums);
    chosen[r] = column[r] >= 0 ? z[column[r]] : 0;
  }
}

template <typename T>
static void gradient(const float* z, const float* top, const float* factor,
                     const int64_t* column, float target_factor, T* dz, int64_t rows,
                     int64_t V) {
  for (int64_t r = 0; r < rows; ++r, z += V, dz += V) {
    for (int64_t i = 0; i < V; i += kLanes)
      store_upto(dz + i, exp_of(load_upto(z + i, V - i) - top[r]) * factor[r], V - i);
    if (const int64_t c = column[r]; c >= 0) {
      float part[kLanes] = {z[c]};
      store(part, exp_of(load(part) - top[r]) * factor[r]);
      dz[c] = from_float<T>(part[0] - target_factor);
    }
  }
}

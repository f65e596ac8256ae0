// Compiled once per instruction set by kernels/for_each_isa.h.

// Online softmax over one chunk of keys. scores [rows, columns] (ld apart) of queries query + r and keys
// key + c; p gets exp(score - max), 0 where masked. top, total: running; y [rows, width] rescaled.
template <typename T>
static void softmax(const float* scores, int64_t ld, T* p, int64_t rows, int64_t columns,
                    int64_t query, int64_t key, const int32_t* first, float scale, float* top,
                    float* total, float* y, int64_t width) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t r = 0; r < rows; ++r, scores += ld, p += ld, y += width) {
    // Columns [begin, end) of this chunk are visible.
    const auto begin = static_cast<int32_t>(first[r] - key), end = static_cast<int32_t>(query + r + 1 - key);
    Vec tops = splat(-3e38f);
    for (int64_t c = 0; c < columns; c += kLanes) {
      const IntVec column = lane + static_cast<int32_t>(c);
      const Vec x = load(scores + c) * scale;
      tops = max_of(tops, (column >= begin) & (column < end) ? x : splat(-3e38f));
    }
    const float before = top[r], now = max_of(tops) > before ? max_of(tops) : before;
    Vec sums = {};
    for (int64_t c = 0; c < columns; c += kLanes) {
      const IntVec column = lane + static_cast<int32_t>(c);
      const Vec e = exp_of(load(scores + c) * scale - now);
      const Vec visible = (column >= begin) & (column < end) ? e : Vec{};
      store(p + c, visible);
      sums += visible;
    }
    const float keep = before > -1e38f ? __builtin_expf(before - now) : 0.0f;
    total[r] = total[r] * keep + sum_of(sums);
    top[r] = now;
    if (keep != 1.0f)
      for (int64_t i = 0; i < width; ++i) y[i] *= keep;
  }
}

template <typename T>
static void finish(const float* y, int64_t width, const float* top, const float* total, T* out,
                   int64_t ld, float* lse, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r, y += width, out += ld) {
    const float inverse = 1.0f / total[r];
    for (int64_t i = 0; i < d; i += kLanes) store_upto(out + i, load_upto(y + i, d - i) * inverse, d - i);
    lse[r] = top[r] + __builtin_logf(total[r]);
  }
}

// p = exp(scale s - lse) where key + r is visible to query + c, else 0; ds = p (dp - delta) scale.
template <typename T>
static void gradient(const float* s, const float* dp, T* p, T* ds, int64_t rows, int64_t columns,
                     int64_t num_queries, int64_t query, int64_t key, const int32_t* first,
                     const float* lse, const float* delta, float scale) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t at_element = r * columns + c;
      IntVec from;
      std::memcpy(&from, first + c, sizeof from);
      const IntVec column = lane + static_cast<int32_t>(c);
      const auto k = static_cast<int32_t>(key + r);
      const Vec e = exp_of(load(s + at_element) * scale - load(lse + c));
      const Vec x = (column + static_cast<int32_t>(query) >= k) & (from <= k) &
                            (column < static_cast<int32_t>(num_queries))
                        ? e
                        : Vec{};
      store(p + at_element, x);
      store(ds + at_element, x * (load(dp + at_element) - load(delta + c)) * scale);
    }
}

template <typename T>
static void row_dots(const T* a, const T* b, int64_t ld, float* out, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r, a += ld, b += ld) {
    Vec sum = {};
    for (int64_t i = 0; i < d; i += kLanes) sum += load_upto(a + i, d - i) * load_upto(b + i, d - i);
    out[r] = sum_of(sum);
  }
}

template <typename T>
static void store_rows(const float* x, int64_t width, T* out, int64_t ld, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r, x += width, out += ld)
    for (int64_t i = 0; i < d; i += kLanes) store_upto(out + i, load_upto(x + i, d - i), d - i);
}

#include "kernels/attention.h"

#include <cmath>
#include <limits>

#include "core/errors.h"
#include "kernels/microkernel.h"
#include "kernels/parallel_tasks.h"
#include "kernels/scratch.h"

#define MANIPLE_BODIES "kernels/attention_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kQueries = 128;  // of a block
constexpr int64_t kKeys = 512;     // of a chunk; a multiple of kPanel

// Shapes and pointers of one call; heads are strided views.
template <typename T>
struct Call {
  Call(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& first_,
       double scale_)
      : B(q_.size(0)), S(q_.size(1)), H(q_.size(2)), G(k_.size(2)), d(q_.size(3)),
        scale(static_cast<float>(scale_)),
        first_data(first_.const_data_ptr<int32_t>()),
        q_data(static_cast<const T*>(q_.const_data_ptr())),
        k_data(static_cast<const T*>(k_.const_data_ptr())),
        v_data(static_cast<const T*>(v_.const_data_ptr())) {}

  int64_t B, S, H, G, d;
  float scale;
  const int32_t* first_data;
  const T *q_data, *k_data, *v_data;

  int64_t panels_of(int64_t n) const { return (n + kPanel - 1) / kPanel; }
  int64_t padded_keys() const { return round_up(S, kPanel); }
  int64_t padded_d() const { return sizeof(T) == 2 ? round_up(d, 2) : d; }
  // Elements of the packed forms of one head: keys as columns [d, S], as rows [S, d].
  int64_t columns_size() const { return padded_keys() * padded_d(); }
  int64_t rows_size() const { return padded_keys() * panels_of(d) * kPanel; }
  const int32_t* first(int64_t b) const { return first_data + b * S; }
  int64_t head(int64_t b, int64_t s, int64_t h, int64_t heads) const {
    return ((b * S + s) * heads + h) * d;
  }
};

// X [n, d] (rows ld apart) as the right operand of A X^T: panels of 64 rows of X.
template <typename T>
void pack_columns(const T* x, int64_t ld, int64_t n, int64_t d, int64_t padded_d, T* out) {
  for (int64_t i = 0; i < n; i += kPanel, out += kPanel * padded_d)
    pack_b(View<T>{x + i * ld, 1, ld}, d, std::min(kPanel, n - i), padded_d, out);
}
// X [n, d] as the right operand of A X: for each panel of 64 columns of X, padded_n rows.
template <typename T>
void pack_rows(const T* x, int64_t ld, int64_t n, int64_t d, int64_t padded_n, T* out) {
  for (int64_t i = 0; i < d; i += kPanel, out += kPanel * padded_n)
    pack_b(View<T>{x + i, ld, 1}, n, std::min(kPanel, d - i), padded_n, out);
}

// Rows of a block as left operand: in place, or copied when their number or depth needs padding.
template <typename T>
struct LeftOperand {
  const T* data;
  int64_t ld;
};
template <typename T>
LeftOperand<T> left_operand(const T* x, int64_t ld, int64_t n, int64_t padded_n, int64_t d,
                            int64_t padded_d, Scratch& scratch) {
  if (n == padded_n && d == padded_d) return {x, ld};
  T* copy = scratch.take<T>(padded_n * padded_d);
  pack_a(View<T>{x, ld, 1}, n, d, padded_n, padded_d, copy);
  return {copy, padded_d};
}

// --- Forward ------------------------------------------------------------------------------------

template <typename T>
void forward_block(const Call<T>& c, int64_t b, int64_t h, int64_t query, const T* keys, const T* values,
                   T* y_out, float* lse) {
  Scratch scratch;
  const int64_t n = std::min(kQueries, c.S - query), rows = round_up(n, 16);
  const int64_t width = c.panels_of(c.d) * kPanel;
  const auto q = left_operand(c.q_data + c.head(b, query, h, c.H), c.H * c.d, n, rows, c.d, c.padded_d(), scratch);
  auto* scores = scratch.take<float>(rows * kKeys);
  T* p = scratch.take<T>(rows * kKeys);
  auto* y = scratch.take<float>(rows * width);
  float top[kQueries], total[kQueries];
  std::fill_n(top, rows, -3e38f);
  std::fill_n(total, rows, 0.0f);
  std::fill_n(y, rows * width, 0.0f);
  if (rows > n) std::memset(static_cast<void*>(p), 0, rows * kKeys * sizeof(T));
  const int64_t from = c.first(b)[query] / kPanel * kPanel, to = query + n;
  for (int64_t key = from; key < to; key += kKeys) {
    const int64_t panels = c.panels_of(std::min(kKeys, to - key));
    for (int64_t i = 0; i < panels; ++i)
      brgemm(rows, c.padded_d(), q.ld, kKeys, false, q.data,
             keys + (key + i * kPanel) * c.padded_d(), scores + i * kPanel);
    with_isa([&](auto bodies) { bodies.template softmax<T>(static_cast<const float*>(scores), kKeys, p, n, panels * kPanel, query, key,
                             c.first(b) + query, c.scale, top, total, y, width); });
    for (int64_t i = 0; i < c.panels_of(c.d); ++i)
      brgemm(rows, panels * kPanel, kKeys, width, true, p,
             values + (i * c.padded_keys() + key) * kPanel, y + i * kPanel);
  }
  with_isa([&](auto bodies) { bodies.template finish<T>(static_cast<const float*>(y), width, static_cast<const float*>(top),
                          static_cast<const float*>(total), y_out + c.head(b, query, h, c.H), c.H * c.d,
                          lse + (b * c.H + h) * c.S + query, n, c.d); });
  release_microkernel<T>();
}

template <typename T>
void forward(const Call<T>& c, at::Tensor& y, at::Tensor& lse) {
  const int64_t heads = c.B * c.G, blocks = (c.S + kQueries - 1) / kQueries;
  const at::Tensor memory = at::empty({heads * (c.columns_size() + c.rows_size())}, y.options());
  auto* keys = static_cast<T*>(memory.data_ptr());
  T* values = keys + heads * c.columns_size();
  parallel_tasks(heads, [&](int64_t task) {
    const int64_t at_head = c.head(task / c.G, 0, task % c.G, c.G);
    pack_columns(c.k_data + at_head, c.G * c.d, c.S, c.d, c.padded_d(), keys + task * c.columns_size());
    pack_rows(c.v_data + at_head, c.G * c.d, c.S, c.d, c.padded_keys(), values + task * c.rows_size());
  });
  parallel_tasks(c.B * c.H * blocks, [&](int64_t task) {
    const int64_t block = blocks - 1 - task % blocks, head = task / blocks;  // the longest first
    const int64_t b = head / c.H, h = head % c.H, kv = b * c.G + h / (c.H / c.G);
    forward_block(c, b, h, block * kQueries, keys + kv * c.columns_size(),
                  values + kv * c.rows_size(), static_cast<T*>(y.data_ptr()), lse.data_ptr<float>());
  });
}

// --- Backward -----------------------------------------------------------------------------------
// Scores are formed transposed (keys as rows), so that P^T and dS^T are left operands as they are.

template <typename T>
struct Backward {
  const Call<T>& c;
  const T *y, *dy;
  const float* lse;
  T *dq, *dk, *dv;

  // All queries of all heads that share key-value head g of row b: dk and dv are summed in this order.
  void group(int64_t b, int64_t g) const {
    Scratch scratch;
    const int64_t width = c.panels_of(c.d) * kPanel, padded = c.padded_keys(), ld = c.G * c.d;
    const int64_t origin = c.head(b, 0, g, c.G);
    const auto k = left_operand(c.k_data + origin, ld, c.S, padded, c.d, c.padded_d(), scratch);
    const auto v = left_operand(c.v_data + origin, ld, c.S, padded, c.d, c.padded_d(), scratch);
    T* key_rows = scratch.take<T>(c.rows_size());
    pack_rows(c.k_data + origin, ld, c.S, c.d, padded, key_rows);
    auto* dk_sum = scratch.take<float>(padded * width);
    auto* dv_sum = scratch.take<float>(padded * width);
    std::fill_n(dk_sum, padded * width, 0.0f);
    std::fill_n(dv_sum, padded * width, 0.0f);
    Block block(c, scratch);
    const int64_t repeat = c.H / c.G;
    for (int64_t h = g * repeat; h < (g + 1) * repeat; ++h)
      for (int64_t query = 0; query < c.S; query += kQueries)
        block.run(*this, b, h, query, k, v, key_rows, dk_sum, dv_sum);
    with_isa([&](auto bodies) { bodies.template store_rows<T>(static_cast<const float*>(dk_sum), width, dk + origin, ld, c.S, c.d); });
    with_isa([&](auto bodies) { bodies.template store_rows<T>(static_cast<const float*>(dv_sum), width, dv + origin, ld, c.S, c.d); });
    release_microkernel<T>();
  }

  // Buffers of one block of queries.
  struct Block {
    Block(const Call<T>& c, Scratch& s)
        : q_columns(s.take<T>(kQueries * c.padded_d())), dy_columns(s.take<T>(kQueries * c.padded_d())),
          q_rows(s.take<T>(kQueries * c.panels_of(c.d) * kPanel)),
          dy_rows(s.take<T>(kQueries * c.panels_of(c.d) * kPanel)),
          scores(s.take<float>(kKeys * kQueries)), dp(s.take<float>(kKeys * kQueries)),
          p(s.take<T>(kKeys * kQueries)), ds(s.take<T>(kKeys * kQueries)),
          ds_rows(s.take<T>(kKeys * kQueries)), dq_sum(s.take<float>(kQueries * c.panels_of(c.d) * kPanel)) {}

    T *q_columns, *dy_columns;
    T *q_rows, *dy_rows;
    float *scores, *dp;
    T *p, *ds, *ds_rows;
    float* dq_sum;

    void run(const Backward& all, int64_t b, int64_t h, int64_t query, LeftOperand<T> k, LeftOperand<T> v,
             const T* key_rows, float* dk_sum, float* dv_sum) {
      const Call<T>& c = all.c;
      const int64_t n = std::min(kQueries, c.S - query), N = round_up(n, kPanel), d_panels = c.panels_of(c.d);
      const int64_t width = d_panels * kPanel, at_head = c.head(b, query, h, c.H), ld = c.H * c.d;
      const T *q = c.q_data + at_head, *g = all.dy + at_head;
      pack_columns(q, ld, n, c.d, c.padded_d(), q_columns);
      pack_columns(g, ld, n, c.d, c.padded_d(), dy_columns);
      pack_rows(q, ld, n, c.d, N, q_rows);
      pack_rows(g, ld, n, c.d, N, dy_rows);
      float delta[kQueries] = {}, lse[kQueries] = {};
      int32_t first[kQueries] = {};
      with_isa([&](auto bodies) { bodies.template row_dots<T>(all.y + at_head, g, ld, static_cast<float*>(delta), n, c.d); });
      std::copy_n(all.lse + (b * c.H + h) * c.S + query, n, lse);
      std::copy_n(c.first(b) + query, n, first);
      std::fill_n(dq_sum, round_up(n, 16) * width, 0.0f);
      const int64_t from = first[0] / kPanel * kPanel, to = round_up(query + n, kPanel);
      for (int64_t key = from; key < to; key += kKeys) {
        const int64_t keys = std::min(kKeys, to - key);
        for (int64_t i = 0; i < N; i += kPanel) {
          brgemm(keys, c.padded_d(), k.ld, N, false, k.data + key * k.ld, q_columns + i * c.padded_d(),
                 scores + i);
          brgemm(keys, c.padded_d(), v.ld, N, false, v.data + key * v.ld,
                 dy_columns + i * c.padded_d(), dp + i);
        }
        with_isa([&](auto bodies) { bodies.template gradient<T>(static_cast<const float*>(scores), static_cast<const float*>(dp), p, ds,
                                  keys, N, n, query, key, static_cast<const int32_t*>(first),
                                  static_cast<const float*>(lse), static_cast<const float*>(delta), c.scale); });
        pack_a(View<T>{ds, 1, N}, n, keys, round_up(n, 16), keys, ds_rows);
        for (int64_t i = 0; i < d_panels; ++i) {
          brgemm(keys, N, N, width, true, p, dy_rows + i * N * kPanel, dv_sum + key * width + i * kPanel);
          brgemm(keys, N, N, width, true, ds, q_rows + i * N * kPanel, dk_sum + key * width + i * kPanel);
          brgemm(round_up(n, 16), keys, keys, width, true, ds_rows,
                 key_rows + (i * c.padded_keys() + key) * kPanel, dq_sum + i * kPanel);
        }
      }
      with_isa([&](auto bodies) { bodies.template store_rows<T>(static_cast<const float*>(dq_sum), width, all.dq + at_head, ld, n, c.d); });
    }
  };
};

// --- Reference ----------------------------------------------------------------------------------

struct Reference {
  at::Tensor q, k, v, scores;  // wide; [B, H, S, d], scores [B, H, S, S], -inf where masked
};

at::Tensor heads_first(const at::Tensor& x, int64_t heads, at::ScalarType wide) {
  const at::Tensor y = x.to(wide).transpose(1, 2);
  return y.size(1) == heads ? y : y.repeat_interleave(heads / y.size(1), 1);
}

Reference reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& first,
                    double scale) {
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t H = q.size(2), S = q.size(1);
  Reference r{heads_first(q, H, wide), heads_first(k, H, wide), heads_first(v, H, wide), {}};
  const at::Tensor index = at::arange(S, q.options().dtype(at::kLong));
  const at::Tensor visible = (index.unsqueeze(0) <= index.unsqueeze(1))
                                 .logical_and(index >= first.to(q.device()).unsqueeze(2)).unsqueeze(1);
  r.scores = at::matmul(r.q, r.k.transpose(2, 3)).mul_(scale).masked_fill_(
      visible.logical_not(), -std::numeric_limits<double>::infinity());
  return r;
}

at::Tensor sum_groups(const at::Tensor& x, int64_t groups, at::ScalarType type) {
  return x.view({x.size(0), groups, -1, x.size(2), x.size(3)}).sum(2).transpose(1, 2).to(type).contiguous();
}

at::Tensor in_fp32(const at::Tensor& x) { return x.to(at::kFloat); }

bool fused(const at::Tensor& q) { return q.is_cpu() && has_microkernel(q.scalar_type()); }

}  // namespace

AttentionResult attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& first, double scale) {
  MANIPLE_INVARIANT(q.is_contiguous() && k.is_contiguous() && v.is_contiguous() && first.is_contiguous() &&
                        q.size(2) % k.size(2) == 0,
                    "{} heads, {} key-value heads", q.size(2), k.size(2));
  if (q.is_cpu() && needs_fp32(q.scalar_type())) {
    AttentionResult wide = attention_forward(in_fp32(q), in_fp32(k), in_fp32(v), first, scale);
    return {wide.y.to(q.scalar_type()), wide.lse};
  }
  if (!fused(q)) {
    const Reference r = reference(q, k, v, first, scale);
    const at::Tensor lse = r.scores.logsumexp(3);
    const at::Tensor p = (r.scores - lse.unsqueeze(3)).exp();
    return {at::matmul(p, r.v).transpose(1, 2).to(q.scalar_type()).contiguous(), lse};
  }
  AttentionResult out{at::empty_like(q), at::empty({q.size(0), q.size(2), q.size(1)},
                                                   q.options().dtype(at::kFloat))};
  if (q.scalar_type() == at::kFloat)
    forward(Call<float>(q, k, v, first, scale), out.y, out.lse);
  else
    forward(Call<bf16_t>(q, k, v, first, scale), out.y, out.lse);
  return out;
}

AttentionGradients attention_backward(const at::Tensor& dy, const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& v, const AttentionResult& forward,
                                      const at::Tensor& first, double scale) {
  if (q.is_cpu() && needs_fp32(q.scalar_type())) {
    const AttentionGradients g = attention_backward(in_fp32(dy), in_fp32(q), in_fp32(k), in_fp32(v),
                                                    {in_fp32(forward.y), forward.lse}, first, scale);
    return {g.q.to(q.scalar_type()), g.k.to(q.scalar_type()), g.v.to(q.scalar_type())};
  }
  if (!fused(q)) {
    const Reference r = reference(q, k, v, first, scale);
    const auto wide = r.q.scalar_type();
    const at::Tensor p = (r.scores - forward.lse.unsqueeze(3)).exp();
    const at::Tensor g = dy.to(wide).transpose(1, 2);
    const at::Tensor dp = at::matmul(g, r.v.transpose(2, 3));
    const at::Tensor ds = p * (dp - (p * dp).sum(3, true)) * scale;
    return {at::matmul(ds, r.k).transpose(1, 2).to(q.scalar_type()).contiguous(),
            sum_groups(at::matmul(ds.transpose(2, 3), r.q), k.size(2), q.scalar_type()),
            sum_groups(at::matmul(p.transpose(2, 3), g), k.size(2), q.scalar_type())};
  }
  AttentionGradients out{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  auto run = [&]<typename T>() {
    const Call<T> c(q, k, v, first, scale);
    auto data = [](const at::Tensor& t) { return static_cast<T*>(t.data_ptr()); };
    const Backward<T> backward{c, data(forward.y), data(dy), forward.lse.const_data_ptr<float>(),
                               data(out.q), data(out.k), data(out.v)};
    parallel_tasks(c.B * c.G, [&](int64_t task) { backward.group(task / c.G, task % c.G); });
  };
  if (q.scalar_type() == at::kFloat)
    run.operator()<float>();
  else
    run.operator()<bf16_t>();
  return out;
}

}  // namespace maniple

#include "kernels/gemm.h"

#include "core/errors.h"
#include "kernels/microkernel.h"
#include "kernels/parallel_tasks.h"
#include "kernels/scratch.h"

#define MANIPLE_BODIES "kernels/gemm_bodies.h"
#include "kernels/for_each_isa.h"

namespace maniple {
namespace {

constexpr int64_t kRows = 128;         // of c per task
constexpr int64_t kMaxPanels = 32;     // of c per task
constexpr int64_t kWaveBytes = 2 << 20;  // of panels that are packed at a time, per thread, about
constexpr int64_t kDepthBytes = 1024;  // of k per call of the microkernel: a part of a panel stays in L1
constexpr int64_t kSlabBytes = 4096;   // of k per pass over the panels: the rows of a task stay in L2

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// S: type of a and b; T: that in which they are multiplied.
template <typename S, typename T>
struct Problem {
  View<S> a, b;
  void* c;
  int64_t ldc;
  bool c_is_float, accumulate;
  int64_t M, N, K, padded_k;
  bool pack_rows;  // a is transposed, or widened, or its depth is padded
  T* panels = nullptr;

  int64_t num_panels() const { return ceil_div(N, kPanel); }
  int64_t num_blocks() const { return ceil_div(M, kRows); }
  int64_t packed_size() const { return num_panels() * kPanel * padded_k; }
  Problem columns(int64_t first, int64_t n) const {
    Problem part = *this;
    part.b.data += first * b.column;
    part.c = static_cast<char*>(c) + first * static_cast<int64_t>(c_is_float ? sizeof(float) : sizeof(bf16_t));
    part.N = n;
    return part;
  }
};

template <typename T>
View<T> view_of(const at::Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}

template <typename S, typename T>
Problem<S, T> make_problem(const Product& p) {
  Problem<S, T> q{view_of<S>(p.a), view_of<S>(p.b), p.c.data_ptr(), p.c.stride(0),
                  p.c.scalar_type() == at::kFloat, p.accumulate,
                  p.a.size(0), p.b.size(1), p.a.size(1), 0, false};
  if (q.M == 1) q.a.row = q.K;  // strides of dims of one element mean nothing
  if (q.K == 1) q.a.column = 1;
  q.pack_rows = !std::is_same_v<S, T> || q.a.column != 1 || (sizeof(T) == 2 && q.K % 2);
  // Depths that vary from call to call (tokens) are rounded up, so that few kernels are made.
  q.padded_k = q.pack_rows ? round_up(q.K, 32) : q.K;
  return q;
}

// Rows [row, row + kRows) and panels [first, last) of a problem: slab after slab of the depth, so that
// the rows' part of it stays in the cache for all panels. Sums of panels that c cannot hold directly
// (it is rounded, or the block is smaller than whole tiles) are kept in tiles until the last slab.
template <typename S, typename T>
void compute_block(const Problem<S, T>& p, int64_t row, int64_t first, int64_t last) {
  const int64_t M = std::min(kRows, p.M - row), padded_m = round_up(M, 16);
  constexpr int64_t kDepth = kDepthBytes / sizeof(T), kSlab = kSlabBytes / sizeof(T);
  const bool pack = p.pack_rows || M != padded_m, whole_rows = p.c_is_float && M == padded_m;
  Scratch scratch;
  T* packed = pack ? scratch.take<T>(padded_m * std::min(kSlab, p.padded_k)) : nullptr;
  const bool one_slab = p.padded_k <= kSlab;
  auto* tiles = scratch.take<float>((one_slab ? 1 : last - first) * kRows * kPanel);
  for (int64_t slab = 0; slab < p.padded_k; slab += kSlab) {
    const int64_t end = std::min(p.padded_k, slab + kSlab);
    const View<S> rows{p.a.data + row * p.a.row + slab * p.a.column, p.a.row, p.a.column};
    const T* a = nullptr;
    int64_t lda = end - slab;
    if (pack) {
      pack_a(rows, M, std::min(p.K, end) - slab, padded_m, lda, packed);
      a = packed;
    } else if constexpr (std::is_same_v<S, T>) {
      a = rows.data;
      lda = rows.row;
    }
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panel * kPanel, N = std::min(kPanel, p.N - column);
      const bool direct = whole_rows && N == kPanel;
      float* tile = tiles + (one_slab ? 0 : panel - first) * kRows * kPanel;
      float* out = direct ? static_cast<float*>(p.c) + row * p.ldc + column : tile;
      const T* b = p.panels + panel * kPanel * p.padded_k;
      for (int64_t k = slab; k < end; k += kDepth)
        brgemm(padded_m, std::min(kDepth, end - k), lda, direct ? p.ldc : kPanel,
               k > 0 || (direct && p.accumulate), a + (k - slab), b + k * kPanel, out);
      if (direct || end < p.padded_k) continue;
      auto store = [&]<typename C>(C* c) {
        with_isa([&](auto bodies) {
          bodies.template store_tile<C>(static_cast<const float*>(tile), M, N, c + row * p.ldc + column,
                                        p.ldc, p.accumulate);
        });
      };
      p.c_is_float ? store(static_cast<float*>(p.c)) : store(static_cast<bf16_t*>(p.c));
    }
  }
}

// Ranges of work [begin of problem i, begin of problem i + 1) in one list of tasks.
struct TaskList {
  std::vector<int64_t> begin{0};
  void add(int64_t tasks) { begin.push_back(begin.back() + tasks); }
  int64_t size() const { return begin.back(); }
  std::pair<size_t, int64_t> find(int64_t task) const {
    const auto it = std::upper_bound(begin.begin(), begin.end(), task) - 1;
    return {static_cast<size_t>(it - begin.begin()), task - *it};
  }
};

// Problems of at most kMaxPanels panels whose panels are in memory at the same time.
template <typename S, typename T>
struct Wave {
  std::vector<Problem<S, T>> problems;
  int64_t packed = 0;
  TaskList packing, computing;
  std::vector<int64_t> groups;  // of panels, per problem: enough tasks for all threads

  void plan(T* memory) {
    int64_t blocks = 0;
    for (const auto& p : problems) blocks += p.num_blocks();
    for (auto& p : problems) {
      p.panels = memory;
      memory += p.packed_size();
      packing.add(p.num_panels());
      groups.push_back(std::min(ceil_div(4 * at::get_num_threads(), blocks), p.num_panels()));
      computing.add(p.num_blocks() * groups.back());
    }
  }
  void pack(int64_t task) const {
    const auto [i, panel] = packing.find(task);
    const auto& p = problems[i];
    const int64_t column = panel * kPanel;
    pack_b(View<S>{p.b.data + column * p.b.column, p.b.row, p.b.column}, p.K,
           std::min(kPanel, p.N - column), p.padded_k, p.panels + panel * kPanel * p.padded_k);
  }
  void compute(int64_t task) const {
    const auto [i, rest] = computing.find(task);
    const auto& p = problems[i];
    const int64_t n = p.num_panels(), g = groups[i], group = rest % g;
    compute_block(p, rest / g * kRows, group * n / g, (group + 1) * n / g);
    release_microkernel<T>();
  }
};

template <typename S, typename T>
std::vector<Wave<S, T>> make_waves(const std::vector<Product>& products) {
  std::vector<Wave<S, T>> waves;
  const int64_t most = at::get_num_threads() * kWaveBytes / static_cast<int64_t>(sizeof(T));
  for (const Product& p : products) {
    if (p.a.size(0) == 0 || p.b.size(1) == 0) continue;
    if (p.a.size(1) == 0) {
      if (!p.accumulate) at::Tensor(p.c).zero_();
      continue;
    }
    const auto whole = make_problem<S, T>(p);
    constexpr int64_t kColumns = kMaxPanels * kPanel;
    for (int64_t column = 0; column < whole.N; column += kColumns) {
      const auto part = whole.columns(column, std::min(kColumns, whole.N - column));
      if (waves.empty() || waves.back().packed + part.packed_size() > most) waves.emplace_back();
      waves.back().problems.push_back(part);
      waves.back().packed += part.packed_size();
    }
  }
  return waves;
}

// Wave after wave, so that panels are still in the cache when they are used; threads that find nothing
// left to multiply pack the next one.
template <typename S, typename T>
void multiply_packed(const std::vector<Product>& products) {
  auto waves = make_waves<S, T>(products);
  if (waves.empty()) return;
  int64_t room = 0;
  for (const auto& wave : waves) room = std::max(room, wave.packed);
  const at::Tensor memory = at::empty({waves.size() > 1 ? 2 * room : room},
                                      at::TensorOptions(sizeof(T) == 2 ? at::kBFloat16 : at::kFloat));
  for (size_t w = 0; w < waves.size(); ++w)
    waves[w].plan(static_cast<T*>(memory.data_ptr()) + static_cast<int64_t>(w % 2) * room);
  parallel_tasks(waves[0].packing.size(), [&](int64_t task) { waves[0].pack(task); });
  for (size_t w = 0; w < waves.size(); ++w) {
    const int64_t now = waves[w].computing.size();
    const int64_t next = w + 1 < waves.size() ? waves[w + 1].packing.size() : 0;
    parallel_tasks(now + next, [&](int64_t task) {
      task < now ? waves[w].compute(task) : waves[w + 1].pack(task - now);
    });
  }
}

void check(const Product& p) {
  MANIPLE_INVARIANT(p.a.dim() == 2 && p.b.dim() == 2 && p.c.dim() == 2 &&
                        p.a.size(1) == p.b.size(0) && p.c.size(0) == p.a.size(0) &&
                        p.c.size(1) == p.b.size(1) && p.a.scalar_type() == p.b.scalar_type(),
                    "product of [{}, {}] and [{}, {}]", p.a.size(0), p.a.size(1), p.b.size(0),
                    p.b.size(1));
}

bool unit_stride(const at::Tensor& t) {
  return t.stride(0) == 1 || t.stride(1) == 1 || t.size(0) == 1 || t.size(1) == 1;
}

void multiply_reference(const Product& p) {
  at::Tensor c = p.c;
  if (p.a.scalar_type() != c.scalar_type()) {
    const at::Tensor y = at::mm(p.a, p.b).to(c.scalar_type());
    p.accumulate ? c.add_(y) : c.copy_(y);
  } else if (p.accumulate) {
    c.addmm_(p.a, p.b);
  } else {
    at::mm_out(c, p.a, p.b);
  }
}

}  // namespace

void multiply(const std::vector<Product>& products) {
  if (products.empty()) return;
  for (const Product& p : products) check(p);
  const auto type = products[0].a.scalar_type();
  // Without instructions for bf16 the libraries need three times as long as in fp32.
  const bool widen = needs_fp32(type);
  bool own = products[0].a.is_cpu() && has_microkernel(widen ? at::kFloat : type);
  for (const Product& p : products)
    own = own && unit_stride(p.a) && unit_stride(p.b) && p.c.stride(1) == 1;
  if (!own)
    for (const Product& p : products) multiply_reference(p);
  else if (type == at::kFloat)
    multiply_packed<float, float>(products);
  else if (widen)
    multiply_packed<bf16_t, float>(products);
  else
    multiply_packed<bf16_t, bf16_t>(products);
}

}  // namespace maniple

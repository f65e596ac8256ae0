#include "objectives/teacher_targets.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/errors.h"
#include "core/random.h"
#include "kernels/gemm.h"
#include "kernels/parallel_tasks.h"
#include "kernels/select.h"
#include "kernels/softmax_loss.h"
#include "objectives/vocabulary.h"

namespace maniple {
namespace {

struct Entry {
  int32_t id;
  int32_t count;
  float log_p;
};
using Entries = std::vector<Entry>;  // of one token, by ascending id

// What everybody knows about a chunk's distribution: ln p(c) = z[c] - log_norm. fp64, host memory.
struct Norms {
  std::vector<double> top, log_norm, label_logp;
};

std::vector<double> to_host(const at::Tensor& x) {
  const at::Tensor d = x.to(at::TensorOptions(at::kCPU).dtype(at::kDouble)).contiguous();
  return {d.const_data_ptr<double>(), d.const_data_ptr<double>() + d.numel()};
}

// What softmax_stats says, from sums that are there.
SoftmaxStats stats_of(const at::Tensor& z, const RunningSums& sums, const at::Tensor& column) {
  const at::Tensor chosen = z.gather(1, column.clamp_min(0).unsqueeze(1)).squeeze(1);
  return {sums.top, sums.total(), chosen * (column >= 0)};
}

// s: of this rank's part.
Norms find_norms(const SoftmaxStats& s, Communicator& tp) {
  const at::Tensor top = max_over(s.top, tp);
  at::Tensor sums = at::stack({s.total * (s.top - top).exp(), s.chosen.to(s.total.scalar_type())});
  sums = sums.to(at::kDouble);
  if (tp.size() > 1) sums = tp.all_reduce_ordered(sums);
  const at::Tensor log_norm = top.to(at::kDouble) + sums[0].log();
  return {to_host(top), to_host(log_norm), to_host(sums[1] - log_norm)};
}

// Everybody's entries of each token together: lists of all ranks in rank order, so by ascending id.
std::vector<Entries> gather_entries(std::vector<Entries> mine, Communicator& tp) {
  if (tp.size() == 1) return mine;
  size_t most = 0;
  for (const Entries& e : mine) most = std::max(most, e.size());
  const auto longs = at::TensorOptions(at::kLong);
  const at::Tensor width = max_over(at::full({1}, static_cast<int64_t>(most), longs), tp);
  const int64_t K = width.item<int64_t>(), n = static_cast<int64_t>(mine.size());
  at::Tensor packed = at::zeros({n, K, 3}, at::TensorOptions(at::kDouble));
  auto* p = packed.data_ptr<double>();
  for (size_t t = 0; t < mine.size(); ++t)
    for (size_t i = 0; i < mine[t].size(); ++i) {
      double* entry = p + (t * static_cast<size_t>(K) + i) * 3;
      entry[0] = mine[t][i].id, entry[1] = mine[t][i].count, entry[2] = mine[t][i].log_p;
    }
  at::Tensor all = at::empty({tp.size(), n, K, 3}, packed.options());
  tp.all_gather(packed, all);
  std::vector<Entries> out(mine.size());
  const double* from = all.const_data_ptr<double>();
  for (int64_t r = 0; r < tp.size(); ++r)
    for (int64_t t = 0; t < n; ++t)
      for (int64_t i = 0; i < K; ++i, from += 3)
        if (from[1] > 0)
          out[static_cast<size_t>(t)].push_back({static_cast<int32_t>(from[0]),
                                                 static_cast<int32_t>(from[1]),
                                                 static_cast<float>(from[2])});
  return out;
}

void keep_largest(Entries& entries, int64_t k) {
  if (static_cast<int64_t>(entries.size()) <= k) return;
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.log_p > b.log_p || (a.log_p == b.log_p && a.id < b.id);
  });
  entries.resize(static_cast<size_t>(k));
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.id < b.id; });
}

// Entries of the columns drawn or chosen on this rank, ids of the whole vocabulary.
template <typename T>
Entries make_entries(const std::vector<int32_t>& columns, const T* z, double log_norm, int64_t first) {
  Entries out;
  for (const int32_t c : columns) {
    const auto id = static_cast<int32_t>(first + c);
    if (!out.empty() && out.back().id == id)
      ++out.back().count;
    else
      out.push_back({id, 1, static_cast<float>(static_cast<double>(z[c]) - log_norm)});
  }
  return out;
}

// The draws of a chunk that fall into this rank's part of the vocabulary. Weights are relative to this
// rank's own maximum, which is common to all tokens' parts by a factor.
std::vector<std::vector<int32_t>> draw(const at::Tensor& z, const RunningSums& sums, const Norms& norms,
                                       const std::vector<uint64_t>& keys, int64_t num,
                                       Communicator& tp) {
  const int64_t n = z.size(0), R = tp.size();
  const std::vector<double> own_top = to_host(sums.top);
  std::vector<double> part_scale;
  for (size_t t = 0; t < own_top.size(); ++t)
    part_scale.push_back(std::exp(sums.power * (own_top[t] - norms.top[t])));
  const at::Tensor mine =
      sums.total() * at::tensor(part_scale, at::TensorOptions(at::kDouble));
  at::Tensor all = at::empty({R, n}, mine.options());
  tp.all_gather(mine.contiguous(), all);
  const double* share = all.const_data_ptr<double>();
  std::vector<RowDraws> draws(static_cast<size_t>(n));
  for (int64_t t = 0; t < n; ++t) {
    RowDraws& d = draws[static_cast<size_t>(t)];
    d.key = keys[static_cast<size_t>(t)];
    d.scale = part_scale[static_cast<size_t>(t)];
    for (int64_t r = 0; r < R; ++r) {
      if (r == tp.rank()) d.low = d.total;
      d.total += share[r * n + t];
      if (r == tp.rank()) d.high = r + 1 == R ? INFINITY : d.total;
    }
  }
  return draw_columns(z, sums, draws, num);
}

// ln of the sum of p^power over the whole vocabulary, for each token of a chunk.
std::vector<double> log_power_sums(const at::Tensor& z, const Norms& norms, double power,
                                   Communicator& tp) {
  const at::Tensor log_norm = at::tensor(norms.log_norm, at::TensorOptions(at::kDouble)).unsqueeze(1);
  at::Tensor sums = ((z.to(at::kDouble) - log_norm) * power).exp().sum(1);
  if (tp.size() > 1) sums = tp.all_reduce_ordered(sums);
  return to_host(sums.log());
}

// What is known of one token when the logits are gone.
struct TokenTarget {
  Entries entries;
  double log_norm = 0, label_logp = 0, log_power = 0;
};

// One chunk of logits z; `column` of the labels, `first` id of this rank.
std::vector<TokenTarget> chunk_targets(const at::Tensor& z, const at::Tensor& column, int64_t first,
                                       const std::vector<uint64_t>& keys, const TargetSpec& spec,
                                       Communicator& tp) {
  Norms norms;
  std::vector<std::vector<int32_t>> columns;
  if (spec.sampled()) {
    const RunningSums sums = running_sums(z, spec.power);
    norms = find_norms(spec.power == 1 ? stats_of(z, sums, column) : softmax_stats(z, column), tp);
    columns = draw(z, sums, norms, keys, spec.num, tp);
  } else {
    norms = find_norms(softmax_stats(z, column), tp);
    columns = top_columns(z, spec.num);
  }
  std::vector<Entries> entries(columns.size());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "entries", [&] {
    const auto* values = z.const_data_ptr<scalar_t>();
    parallel_ranges(z.size(0), 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto t = static_cast<size_t>(i);
        entries[t] = make_entries(columns[t], values + i * z.size(1), norms.log_norm[t], first);
      }
    });
  });
  entries = gather_entries(std::move(entries), tp);
  std::vector<double> log_power(entries.size());
  if (spec.kind == TargetKind::kImportance) log_power = log_power_sums(z, norms, spec.power, tp);
  std::vector<TokenTarget> out;
  for (size_t t = 0; t < entries.size(); ++t) {
    if (!spec.sampled()) keep_largest(entries[t], spec.num);
    out.push_back({std::move(entries[t]), norms.log_norm[t], norms.label_logp[t], log_power[t]});
  }
  return out;
}

TeacherRow make_row(const std::vector<int32_t>& label, std::span<const TokenTarget> targets,
                    const TargetSpec& spec) {
  TeacherRow row;
  row.begin = {0};
  for (size_t t = 0; t < label.size(); ++t) {
    const TokenTarget& target = targets[t];
    double mass = 0;
    if (label[t] >= 0) {
      if (!std::isfinite(target.log_norm))
        throw DataError("the teacher's logits are not finite; its weights or precision are at fault");
      for (const Entry& e : target.entries) {
        if (e.id >= kMaxTargetId)
          throw DataError(fmt::format(
              "the teacher gives probability to id {}; targets have ids below 2^18 = {}; use a "
              "teacher whose vocabulary is smaller", e.id, kMaxTargetId));
        const auto log_p = static_cast<double>(e.log_p);
        mass += std::exp(log_p);
        row.id.push_back(e.id);
        if (spec.sampled()) row.count.push_back(e.count);
        if (spec.kind == TargetKind::kImportance)
          row.log_value.push_back(static_cast<float>((1 - spec.power) * log_p + target.log_power));
        else if (spec.valued())
          row.log_value.push_back(e.log_p);
      }
    }
    row.begin.push_back(static_cast<int32_t>(row.id.size()));
    row.mass.push_back(static_cast<float>(std::min(mass, 1.0)));
    row.label_logp.push_back(label[t] >= 0 ? static_cast<float>(target.label_logp) : 0);
  }
  return row;
}

}  // namespace

std::vector<TeacherRow> teacher_targets(const at::Tensor& h_TD, const Parameter& head,
                                        int64_t vocab_size, const std::vector<Row>& rows,
                                        const TargetSpec& spec, Communicator& tp) {
  at::NoGradGuard no_grad;
  const HeadPart part(head, vocab_size);
  const auto wide = head.grad.scalar_type();
  const int64_t T = h_TD.size(0), chunk = chunk_tokens(head.shape[0], at::elementSize(wide));
  struct Token {
    size_t row;
    int64_t position;
    int32_t label;
  };
  std::vector<Token> tokens;
  for (size_t r = 0; r < rows.size(); ++r)
    for (size_t t = 0; t < rows[r].target.size(); ++t)
      tokens.push_back({r, static_cast<int64_t>(t), rows[r].target[t]});
  MANIPLE_INVARIANT(T == static_cast<int64_t>(tokens.size()), "{} tokens, {} activations",
                    tokens.size(), T);

  std::vector<TokenTarget> targets;
  targets.reserve(tokens.size());
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t n = std::min(chunk, T - begin);
    at::Tensor z = at::empty({n, part.rows}, h_TD.options().dtype(wide));
    multiply(h_TD.narrow(0, begin, n), part.weight.t(), z);
    z = z.cpu();
    if (spec.temperature != 1) z.div_(spec.temperature);
    at::Tensor label = at::empty({n}, at::TensorOptions(at::kLong));
    std::vector<uint64_t> keys;
    for (int64_t i = 0; i < n; ++i) {
      const Token& token = tokens[static_cast<size_t>(begin + i)];
      label.data_ptr<int64_t>()[i] = token.label;
      const SampleId& sample = rows[token.row].sample;
      keys.push_back(key_of(spec.seed, sample.source, sample.row, token.position));
    }
    for (TokenTarget& target : chunk_targets(z, part.columns(label), part.first, keys, spec, tp))
      targets.push_back(std::move(target));
  }

  std::vector<TeacherRow> out(rows.size());
  parallel_tasks(static_cast<int64_t>(rows.size()), [&](int64_t r) {
    const auto row = static_cast<size_t>(r), S = tokens.size() / rows.size();
    out[row] = make_row(rows[row].target, {targets.data() + row * S, S}, spec);
  });
  return out;
}

}  // namespace maniple

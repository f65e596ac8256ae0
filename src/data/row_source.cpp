#include "data/row_source.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/errors.h"
#include "core/random.h"
#include "data/sample_order.h"
#include "data/token_stream.h"

namespace maniple {
namespace {

constexpr uint64_t kOrderVersion = 1;  // to raise when the order or content of rows changes

struct OpenSource {
  std::string path;
  std::unique_ptr<TokenStream> stream;
  uint64_t train_rows = 0, validation_rows = 0;  // in this order in the stream
};

// Row i reads tokens [i * seq_len, (i + 1) * seq_len].
Row make_row(const TokenStream& stream, int64_t i, int64_t seq_len) {
  const int64_t begin = i * seq_len;
  const auto length = static_cast<size_t>(seq_len);
  Row row;
  row.sample = {stream.content_hash(), i};
  row.input.resize(length + 1);
  stream.read(begin, row.input);
  row.target.assign(row.input.begin() + 1, row.input.end());
  row.input.pop_back();
  row.position.resize(length);
  row.document.resize(length);

  int64_t document = stream.document_of(begin);
  int64_t end = stream.document_start(document + 1);
  int32_t position = 0, number = 0;
  for (size_t j = 0; j < length; ++j) {
    row.position[j] = position++;
    row.document[j] = number;
    const int64_t target = begin + static_cast<int64_t>(j) + 1;
    if (target < end) continue;
    row.target[j] = -1;
    position = 0;
    ++number;
    while (target >= end && document + 1 < stream.num_documents())  // empty documents are skipped
      end = stream.document_start(++document + 1);
  }
  return row;
}

class BlendedRows : public RowSource {
 public:
  BlendedRows(std::vector<OpenSource> sources, std::vector<uint64_t> weights, int64_t seq_len,
              uint64_t seed)
      : sources_(std::move(sources)), seq_len_(seq_len), seed_(seed), train_(weights) {
    fingerprint_ = key_of(kOrderVersion, seq_len, seed, sources_.size());
    std::vector<uint64_t> validation;
    for (size_t i = 0; i < sources_.size(); ++i) {
      const OpenSource& source = sources_[i];
      train_rows_ += source.train_rows;
      validation_rows_ += source.validation_rows;
      validation.push_back(source.validation_rows);
      fingerprint_ = key_of(fingerprint_, source.stream->content_hash(), source.train_rows,
                            source.validation_rows, weights[i]);
    }
    if (validation_rows_ > 0) validation_.emplace_back(validation);
  }

  Row row(Split split, uint64_t number) const override {
    const auto [source, index] = place(split, number);
    return make_row(*source->stream, index, seq_len_);
  }

  SampleId sample_of(Split split, uint64_t number) const override {
    const auto [source, index] = place(split, number);
    return {source->stream->content_hash(), index};
  }

  Row read(const SampleId& sample) const override {
    for (const OpenSource& source : sources_)
      if (source.stream->content_hash() == sample.source &&
          sample.row < static_cast<int64_t>(source.train_rows + source.validation_rows))
        return make_row(*source.stream, sample.row, seq_len_);
    throw InternalError(fmt::format("row {} of source {:016x} is not of this data", sample.row,
                                    sample.source));
  }

  std::vector<Source> sources() const override {
    std::vector<Source> out;
    for (const OpenSource& source : sources_)
      out.push_back({source.path, source.stream->content_hash(),
                     static_cast<int64_t>(source.train_rows)});
    return out;
  }

  int64_t num_rows(Split split) const override {
    return static_cast<int64_t>(split == Split::kTrain ? train_rows_ : validation_rows_);
  }

  int64_t num_tokens() const override {
    int64_t sum = 0;
    for (const OpenSource& source : sources_) sum += source.stream->num_tokens();
    return sum;
  }

  double bytes_per_token() const override {
    double bytes = 0, tokens = 0;
    for (const OpenSource& source : sources_) {
      if (source.stream->bytes_per_token() == 0) return 0;
      const auto count = static_cast<double>(source.stream->num_tokens());
      bytes += count * source.stream->bytes_per_token();
      tokens += count;
    }
    return bytes / tokens;
  }

  uint64_t fingerprint() const override { return fingerprint_; }

 private:
  struct Place {
    const OpenSource* source;
    int64_t index;  // of the row in natural order
  };
  Place place(Split split, uint64_t number) const {
    if (split == Split::kValidation) {
      MANIPLE_INVARIANT(number < validation_rows_, "validation row {} of {}", number,
                        validation_rows_);
      const auto [i, index] = validation_[0](number);
      const OpenSource& source = sources_[static_cast<size_t>(i)];
      return {&source, static_cast<int64_t>(source.train_rows + index)};
    }
    const auto [i, index] = train_(number);
    const OpenSource& source = sources_[static_cast<size_t>(i)];
    const uint64_t epoch = index / source.train_rows, within = index % source.train_rows;
    const Permutation order(source.train_rows, key_of(hash_name("epoch"), seed_, i, epoch));
    return {&source, static_cast<int64_t>(order(within))};
  }

  std::vector<OpenSource> sources_;
  int64_t seq_len_;
  uint64_t seed_;
  Blend train_;
  std::vector<Blend> validation_;  // one, or none when there are no validation rows
  uint64_t train_rows_ = 0, validation_rows_ = 0, fingerprint_ = 0;
};

void check_config(const DataConfig& data, int64_t seq_len) {
  if (data.sources.empty())
    throw ConfigError("data.sources is empty; it must name at least one source {path, kind}");
  if (seq_len < 1 || seq_len > 1 << 28)
    throw ConfigError(fmt::format("batch.seq_len is {}, must be in 1..2^28", seq_len));
  if (!(data.validation >= 0 && data.validation < 1))
    throw ConfigError(
        fmt::format("data.validation is {}, must be at least 0 and below 1", data.validation));
  for (const SourceConfig& source : data.sources)
    if (!(source.weight > 0) || !std::isfinite(source.weight))
      throw ConfigError(fmt::format("data source {}: weight is {}, must be positive and finite",
                                    source.path, source.weight));
}

std::unique_ptr<TokenStream> open_stream(const SourceConfig& source, int64_t vocab_size) {
  if (source.kind == "text") return open_text(source.path, vocab_size);
  if (source.kind == "megatron") return open_megatron(source.path, vocab_size);
  throw ConfigError(fmt::format("data source {}: kind is \"{}\", must be text or megatron",
                                source.path, source.kind));
}

OpenSource open_source(const SourceConfig& config, double validation, int64_t seq_len,
                   int64_t vocab_size) {
  OpenSource source;
  source.path = config.path;
  source.stream = open_stream(config, vocab_size);
  const std::string hash = fmt::format("{:016x}", source.stream->content_hash());
  if (!config.hash.empty() && config.hash != hash)
    throw DataError(fmt::format(
        "data source {}: the hash of its contents is {}, data.sources[].hash is {}: it is damaged or "
        "another one; restore it",
        config.path, hash, config.hash));
  const int64_t rows = (source.stream->num_tokens() - 1) / seq_len;
  if (rows < 1)
    throw DataError(fmt::format(
        "data source {} has {} tokens, but one row needs batch.seq_len + 1 = {}; add data or lower "
        "batch.seq_len",
        config.path, source.stream->num_tokens(), seq_len + 1));
  if (validation > 0) {
    const auto share = static_cast<int64_t>(std::ceil(validation * static_cast<double>(rows)));
    source.validation_rows = static_cast<uint64_t>(std::min(share, rows - 1));
  }
  source.train_rows = static_cast<uint64_t>(rows) - source.validation_rows;
  return source;
}

// Weights as integers, the largest 2^32: rounding moves less than one row in 2^32.
std::vector<uint64_t> integer_weights(const std::vector<SourceConfig>& sources) {
  double largest = 0;
  for (const SourceConfig& source : sources) largest = std::max(largest, source.weight);
  std::vector<uint64_t> weights;
  for (const SourceConfig& source : sources)
    weights.push_back(std::max<uint64_t>(
        1, static_cast<uint64_t>(std::llrint(source.weight / largest * 0x1p32))));
  return weights;
}

}  // namespace

std::unique_ptr<RowSource> open_row_source(const DataConfig& data, int64_t seq_len,
                                           int64_t vocab_size, uint64_t seed) {
  check_config(data, seq_len);
  std::vector<OpenSource> sources;
  for (const SourceConfig& source : data.sources)
    sources.push_back(open_source(source, data.validation, seq_len, vocab_size));
  return std::make_unique<BlendedRows>(std::move(sources), integer_weights(data.sources), seq_len,
                                       seed);
}

}  // namespace maniple

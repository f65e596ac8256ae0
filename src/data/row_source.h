// Rows of token ids for training and evaluation. Torch-free.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "data/teacher_row.h"

namespace maniple {

// What a row is called whatever the seed, the order and the blend: row `row` of the unshuffled
// packing of the source with this content hash, at the given seq_len.
struct SampleId {
  uint64_t source = 0;
  int64_t row = 0;
  auto operator<=>(const SampleId&) const = default;
};

// One training sequence: seq_len inputs and the target of each. Documents are files of a text
// source (with the id 256 that ends them) and sequences of a megatron source.
struct Row {
  std::vector<int32_t> input;     // [seq_len]
  std::vector<int32_t> target;    // [seq_len]; -1: masked (it belongs to another document)
  std::vector<int32_t> position;  // [seq_len]; 0, 1, ... in each document; 0 at the row's first
                                  // token even if its document began before the row
  std::vector<int32_t> document;  // [seq_len]; 0, 1, ... within the row
  SampleId sample;
  TeacherRow teacher;  // empty unless a teacher store is attached (data/taught_rows.h)
};

enum class Split { kTrain, kValidation };

// A pure function (split, global row number) -> Row: independent of ranks, threads and history.
// Thread-safe after construction.
//
// Row i of a source in natural order reads the seq_len + 1 ids from token i * seq_len on; the
// remainder at the source's end is not used. Of n rows the last ceil(validation * n), at most
// n - 1, are for validation, the others for training.
// Training: with several sources, row number k goes to a source by weight, evenly and
// deterministically (data/sample_order.h); a source's rows come in a new keyed permutation of
// (seed, source, epoch) each time they have all been seen. Numbers have no end.
// Validation: natural order, sources interleaved in proportion to their rows; every number below
// num_rows is another row, and a number beyond is a broken invariant.
class RowSource {
 public:
  virtual ~RowSource() = default;
  virtual Row row(Split split, uint64_t number) const = 0;
  virtual SampleId sample_of(Split split, uint64_t number) const = 0;  // without reading it
  virtual Row read(const SampleId& sample) const = 0;  // of one of sources()
  // By the order of data.sources; equal contents are one source to a teacher store.
  struct Source {
    std::string path;
    uint64_t content;     // hash of tokens and document borders
    int64_t train_rows;   // samples 0 to train_rows - 1 are for training
  };
  virtual std::vector<Source> sources() const = 0;
  virtual int64_t num_rows(Split split) const = 0;  // of one epoch
  virtual int64_t num_tokens() const = 0;
  virtual double bytes_per_token() const = 0;  // text: 1; megatron: 0 (unknown)
  virtual uint64_t fingerprint() const = 0;    // of the data, order and seq_len; for resume checks
};

// Opens and validates every source: exists (NoInputError), readable, magic, version, sizes, every
// token in 0..vocab_size - 1, at least one training row (DataError); known kind, positive weights,
// vocab_size >= 257 for text (ConfigError). Kinds and formats: data/token_stream.h. The message
// names path and rule.
std::unique_ptr<RowSource> open_row_source(const DataConfig& data, int64_t seq_len,
                                           int64_t vocab_size, uint64_t seed);

}  // namespace maniple

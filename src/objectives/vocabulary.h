// A head whose vocabulary is divided over tp, seen a chunk of tokens at a time. Shape letters: T
// tokens, D model, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include "parallel/layers.h"

namespace maniple {

// This rank's part of the vocabulary: rows [first, first + rows) of the whole head.
struct HeadPart {
  HeadPart(const Parameter& head, int64_t vocab_size);
  // Columns of this part for ids (int64, any shape); -1 where an id is negative or elsewhere.
  at::Tensor columns(const at::Tensor& id) const;

  int64_t first, rows;
  at::Tensor weight;  // [rows, D]
};

// Tokens whose logits over `columns` are made at a time.
int64_t chunk_tokens(int64_t columns, int64_t element_bytes);

// The largest of everybody's values, element by element. Collective over tp.
at::Tensor max_over(const at::Tensor& x, Communicator& tp);

}  // namespace maniple

// The bytes of GGUF tensors (spec/model.md 4.6).
//   Q4_0: 18 bytes for 32 values: fp16 d, then byte j = code j | code (j + 16) << 4; value d (code
//   - 8). Q8_0: 34 bytes for 32 values: fp16 d = a / 127, then 32 int8 round(w / d), halves away
//   from zero.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "interop/gguf_file.h"

namespace maniple {

// The bytes of w in a type of its own accord: F32, F16, BF16, or Q8_0 by that grid's rule. Q4_0 has
// its integers and scales from the trainer's grid (quant/grid.h).
std::string gguf_encode(GgufType type, const at::Tensor& w);
// Elements from bytes (gguf_bytes(type, n) of them): F16 and BF16 stay, the rest becomes F32.
at::Tensor gguf_decode(GgufType type, const char* bytes, int64_t n);

}  // namespace maniple

#include "interop/gguf_blocks.h"

#include <c10/util/Half.h>

#include <cmath>
#include <cstring>

#include "core/errors.h"
#include "quant/grid.h"

namespace maniple {
namespace {

constexpr int64_t kBlock = 32, kHalfBlock = 16, kScaleBytes = 2;
constexpr int64_t kQ4Bytes = kScaleBytes + kHalfBlock, kQ8Bytes = kScaleBytes + kBlock;

void put_scale(char* to, float d) {
  const uint16_t bits = c10::Half(d).x;
  std::memcpy(to, &bits, sizeof bits);
}

float take_scale(const char* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

std::string encode_q4_0(const at::Tensor& w) {
  // A row per block: the grid depends on nothing outside a block.
  const Quantized quantized = quantize(make_grid("q4_0", at::kFloat), w.reshape({-1, kBlock}));
  const int64_t blocks = quantized.q_OI.size(0);
  const auto* q = quantized.q_OI.const_data_ptr<int8_t>();
  const auto* scale = quantized.scale_OG.const_data_ptr<float>();
  std::string bytes(blocks * kQ4Bytes, '\0');
  for (int64_t b = 0; b < blocks; ++b) {
    char* to = bytes.data() + b * kQ4Bytes;
    put_scale(to, scale[b]);
    for (int64_t j = 0; j < kHalfBlock; ++j) {
      const int low = q[b * kBlock + j] + 8, high = q[b * kBlock + j + kHalfBlock] + 8;
      to[kScaleBytes + j] = static_cast<char>(low | high << 4);
    }
  }
  return bytes;
}

std::string encode_q8_0(const at::Tensor& w_any) {
  const at::Tensor w = w_any.to(at::kFloat).contiguous();
  const int64_t blocks = w.numel() / kBlock;
  const auto* from = w.const_data_ptr<float>();
  std::string bytes(blocks * kQ8Bytes, '\0');
  for (int64_t b = 0; b < blocks; ++b, from += kBlock) {
    char* to = bytes.data() + b * kQ8Bytes;
    float a = 0;
    for (int64_t i = 0; i < kBlock; ++i) a = std::max(a, std::abs(from[i]));
    const float d = a / 127, inverse = d == 0 ? 0 : 1 / d;
    put_scale(to, d);
    for (int64_t i = 0; i < kBlock; ++i)
      to[kScaleBytes + i] = static_cast<char>(std::lround(from[i] * inverse));
  }
  return bytes;
}

std::string raw_bytes(const at::Tensor& w, at::ScalarType type) {
  const at::Tensor t = w.to(type).contiguous();
  return {static_cast<const char*>(t.const_data_ptr()), t.nbytes()};
}

at::Tensor copy_of(const char* bytes, int64_t n, at::ScalarType type) {
  at::Tensor out = at::empty({n}, at::TensorOptions(type));
  if (n > 0) std::memcpy(out.data_ptr(), bytes, out.nbytes());
  return out;
}

}  // namespace

std::string gguf_encode(GgufType type, const at::Tensor& w) {
  MANIPLE_INVARIANT(w.numel() % gguf_block(type) == 0, "{} elements", w.numel());
  switch (type) {
    case GgufType::kF32:
      return raw_bytes(w, at::kFloat);
    case GgufType::kF16:
      return raw_bytes(w, at::kHalf);
    case GgufType::kBF16:
      return raw_bytes(w, at::kBFloat16);
    case GgufType::kQ8_0:
      return encode_q8_0(w);
    case GgufType::kQ4_0:
      return encode_q4_0(w);
  }
  throw InternalError("unknown GGUF type");
}

at::Tensor gguf_decode(GgufType type, const char* bytes, int64_t n) {
  if (type == GgufType::kF32) return copy_of(bytes, n, at::kFloat);
  if (type == GgufType::kF16) return copy_of(bytes, n, at::kHalf);
  if (type == GgufType::kBF16) return copy_of(bytes, n, at::kBFloat16);
  at::Tensor out = at::empty({n}, at::TensorOptions(at::kFloat));
  auto* to = out.data_ptr<float>();
  const bool q4 = type == GgufType::kQ4_0;
  for (int64_t b = 0; b < n / kBlock; ++b, to += kBlock) {
    const char* from = bytes + b * (q4 ? kQ4Bytes : kQ8Bytes);
    const float d = take_scale(from);
    from += kScaleBytes;
    for (int64_t j = 0; j < kHalfBlock; ++j) {
      if (q4) {
        const auto byte = static_cast<unsigned char>(from[j]);
        to[j] = d * static_cast<float>((byte & 15) - 8);
        to[j + kHalfBlock] = d * static_cast<float>((byte >> 4) - 8);
      } else {
        to[j] = d * static_cast<float>(static_cast<int8_t>(from[j]));
        to[j + kHalfBlock] = d * static_cast<float>(static_cast<int8_t>(from[j + kHalfBlock]));
      }
    }
  }
  return out;
}

}  // namespace maniple

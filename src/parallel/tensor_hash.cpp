#include "parallel/tensor_hash.h"

#include <algorithm>
#include <cstring>

#include "kernels/device_kernels.h"
#include "links/message_hash.h"

namespace maniple {
namespace {

std::string_view text_of(const at::Tensor& host) {
  return {static_cast<const char*>(host.const_data_ptr()), host.nbytes()};
}

}  // namespace

uint64_t tensor_hash(const at::Tensor& t) {
  if (t.is_cuda()) return device::hash(t.detach().contiguous());
  const at::Tensor host = t.detach().cpu().contiguous();
  const std::string_view bytes = text_of(host);
  return message_hash({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

Fingerprint fingerprint_of(std::string_view bytes, uint64_t key) {
  Fingerprint f;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(4, bytes.size() - i));
    f.add_word(word, i / 4, key);
  }
  return f;
}

Fingerprint fingerprint_of(const at::Tensor& t, uint64_t key) {
  const at::Tensor host = t.detach().cpu().contiguous();
  return fingerprint_of(text_of(host), key);
}

at::Tensor words_of(const Fingerprint& f) {
  return at::tensor(std::vector<int64_t>{static_cast<int64_t>(f.lo), static_cast<int64_t>(f.hi)},
                    at::TensorOptions(at::kLong));
}

Fingerprint combined(const at::Tensor& words) {
  Fingerprint whole;
  const int64_t* word = words.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < words.numel(); i += 2)
    whole.combine({static_cast<uint64_t>(word[i]), static_cast<uint64_t>(word[i + 1])});
  return whole;
}

}  // namespace maniple

// Hashes of the bits of tensors, and fingerprints on their way between ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "core/fingerprint.h"

namespace maniple {

// Of its bytes, row-major: XXH3, or on a GPU word_hash. So it tells equal from unequal among tensors of
// one kind of device.
uint64_t tensor_hash(const at::Tensor& t);

// Over 32-bit words with their index; the last one is filled up with zeros.
Fingerprint fingerprint_of(std::string_view bytes, uint64_t key);
Fingerprint fingerprint_of(const at::Tensor& t, uint64_t key);  // row-major

at::Tensor words_of(const Fingerprint& f);      // int64 [2]: lo, hi
Fingerprint combined(const at::Tensor& words);  // of int64 [..., 2]

}  // namespace maniple

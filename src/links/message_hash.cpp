#include "links/message_hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace maniple {

#if defined(__x86_64__) && defined(__GNUC__)
uint64_t message_hash_avx2(const uint8_t* bytes, size_t size);
uint64_t message_hash_avx512(const uint8_t* bytes, size_t size);
#endif

namespace {

using Hash = uint64_t (*)(const uint8_t*, size_t);

uint64_t message_hash_base(const uint8_t* bytes, size_t size) { return XXH3_64bits(bytes, size); }

Hash choose() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return message_hash_avx512;
  if (__builtin_cpu_supports("avx2")) return message_hash_avx2;
#endif
  return message_hash_base;
}

}  // namespace

uint64_t message_hash(std::span<const uint8_t> bytes) {
  static const Hash hash = choose();
  return hash(bytes.data(), bytes.size());
}

}  // namespace maniple

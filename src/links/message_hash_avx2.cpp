#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2")
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace maniple {

uint64_t message_hash_avx2(const uint8_t* bytes, size_t size) { return XXH3_64bits(bytes, size); }

}  // namespace maniple
#endif

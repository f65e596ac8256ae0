#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define XXH_INLINE_ALL
#include <xxhash.h>

// CMakeLists.txt compiles this file by itself and for this instruction set.
static_assert(XXH_VECTOR == XXH_AVX512);

namespace maniple {

uint64_t message_hash_avx512(const uint8_t* bytes, size_t size) { return XXH3_64bits(bytes, size); }

}  // namespace maniple
#endif

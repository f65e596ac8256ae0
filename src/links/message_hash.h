// XXH3 of a whole message: what a frame carries and its receiver checks. Compiled for several
// instruction sets from the inlined header, equal values on all of them. Any thread.
#pragma once

#include <cstdint>
#include <span>

namespace maniple {

uint64_t message_hash(std::span<const uint8_t> bytes);

}  // namespace maniple

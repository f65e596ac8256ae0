#include "core/fingerprint.h"

#include <fmt/format.h>

namespace maniple {

std::string Fingerprint::hex() const { return fmt::format("{:016x}{:016x}", hi, lo); }

}  // namespace maniple

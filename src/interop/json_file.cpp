#include "interop/json_file.h"

#include "core/errors.h"
#include "core/files.h"

namespace maniple {

nlohmann::json read_json_object(const std::string& path, const std::string& what) {
  constexpr int kMaxDepth = 64;
  const auto check = [&](int depth, auto, auto&) {
    if (depth > kMaxDepth)
      throw DataError(fmt::format("reading {}: nested deeper than {} levels", path, kMaxDepth));
    return true;
  };
  auto object = nlohmann::json::parse(read_file(path, what), check, false);
  if (!object.is_object())
    throw DataError(fmt::format("reading {}: it is not a JSON object", path));
  return object;
}

}  // namespace maniple

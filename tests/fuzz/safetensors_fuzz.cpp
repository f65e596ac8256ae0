// Safetensors files: header and data. All tensors of an accepted file are read.
#include "fuzz.h"
#include "interop/safetensors.h"
#include "scratch_file.h"

namespace maniple {
namespace {

std::string file_of(const std::string& header, size_t data_bytes) {
  uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + header + std::string(data_bytes, '\1');
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  return {file_of(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                  R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}})", 26),
          file_of(R"({"__metadata__":{"format":"pt"},"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8),
          file_of("{}", 0)};
}

std::vector<std::string> fuzz_dictionary() {
  return {"\"F64\"", "\"I32\"", "[0,0]", "\"shape\":[0]", "\"data_offsets\":[8,4]", "\\u0000", "{",
          "}", ",", "\"a\":", "[9223372036854775807,2]"};
}

void fuzz_one(const std::string& input) {
  static const ScratchFolder folder;
  const SafetensorsFile file(folder.put("x.safetensors", input));
  for (const auto& [name, entry] : file.entries()) file.read(name);
}

}  // namespace maniple

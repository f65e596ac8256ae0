// Megatron's indexed data set: an input is the length of the .idx (2 bytes), the .idx, the .bin.
#include "data/token_stream.h"
#include "fuzz.h"
#include "scratch_file.h"

namespace maniple {
namespace {

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string data_set(uint8_t dtype, int token_bytes, const std::vector<int32_t>& lengths) {
  std::string idx("MMIDIDX\0\0", 9), out, bin;
  put<uint64_t>(idx, 1);
  put<uint8_t>(idx, dtype);
  put<uint64_t>(idx, lengths.size());
  put<uint64_t>(idx, lengths.size() + 1);
  for (int32_t n : lengths) put<int32_t>(idx, n);
  int64_t offset = 0;
  for (int32_t n : lengths) {
    put<int64_t>(idx, offset);
    offset += n * token_bytes;
  }
  for (size_t i = 0; i <= lengths.size(); ++i) put<int64_t>(idx, static_cast<int64_t>(i));
  put<uint16_t>(out, static_cast<uint16_t>(idx.size()));
  return out + idx + std::string(static_cast<size_t>(offset), '\0');
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  return {data_set(8, 2, {3, 4}), data_set(4, 4, {1}), data_set(5, 8, {2, 1, 7})};
}

std::vector<std::string> fuzz_dictionary() { return {"MMIDIDX", std::string(8, '\0')}; }

void fuzz_one(const std::string& input) {
  static const ScratchFolder folder;
  if (input.size() < 2) return;
  const size_t length = static_cast<unsigned char>(input[0]) + 256u * static_cast<unsigned char>(input[1]);
  const std::string rest = input.substr(2);
  folder.put("x.idx", rest.substr(0, length));
  folder.put("x.bin", length < rest.size() ? rest.substr(length) : "");
  const auto stream = open_megatron(folder.path() + "/x", 100);
  std::vector<int32_t> tokens(static_cast<size_t>(stream->num_tokens()));
  stream->read(0, tokens);
  for (int64_t d = 0; d < stream->num_documents(); ++d) stream->document_start(d);
}

}  // namespace maniple

// The manifest of a checkpoint. A changed text fails its hash and goes no further, so the target
// writes the right hash for half of the inputs and looks at the tables behind it.
#include "checkpoint/disk.h"
#include "checkpoint/manifest.h"
#include "fuzz.h"

namespace maniple {

std::vector<std::string> fuzz_seeds() {
  Manifest m;
  m.step = 12;
  m.num_writers = 2;
  m.attempt = "17";
  m.tensors = {{"master/a", ElementType::kF32, {4, 5}}, {"m/b", ElementType::kBf16, {3}},
               {"router_bias/c", ElementType::kF64, {}}};
  m.files = {{"part-00000.h5", 100, "0123456789abcdef"}, {"part-00001.h5", 7, "0000000000000000"}};
  m.pieces = {{0, 0, "d0", {0, 0}, {2, 5}, 0, 10}, {0, 1, "d1", {2, 0}, {2, 6}, 0, 12},
              {1, 1, "d2", {0}, {3}, 0, 3}, {2, 0, "d3", {}, {}, 0, 1}};
  m.meta = {{"config", "run: {}\n"}, {"step", 12}, {"lr", 1e-3}};
  return {manifest_text(m), manifest_text(Manifest{.step = 1, .num_writers = 1, .attempt = "x",
                                                   .tensors = {}, .files = {}, .pieces = {}})};
}

std::vector<std::string> fuzz_dictionary() {
  return {"\"tensor\": 3", "\"shape\": [1, 1]", "[-1]", "\"bf16\"", "null", "{}", "[]", "\"../x\"",
          "\"end\": 9", "\"begin\": 4", "\"offset\": [9223372036854775807, 1]"};
}

void fuzz_one(const std::string& input) {
  std::string text = input;
  const std::string key = "\n\"xxh3\": \"";
  const size_t hash = text.rfind(key);
  if (input.size() % 2 == 0 && hash != text.npos)
    text = text.substr(0, hash) + key + disk::hash_text(std::string_view(text).substr(0, hash)) + "\"}\n";
  const Manifest manifest = parse_manifest(text, "fuzz");
  const auto pieces = pieces_by_tensor(manifest);
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    // A table of a tensor is as long as its pieces have rows: true ones are bounded by their files.
    int64_t elements = 0;
    for (const size_t p : pieces[t])
      elements = std::max(elements, num_elements(manifest.pieces[p].shape));
    if (elements < 100'000) stored_tensor(manifest, t, pieces[t], "fuzz");
  }
}

}  // namespace maniple

// tokenizer.json of a Hugging Face folder, and behind a zero byte its config.json. What is accepted
// has a token for every id, and no special id that the vocabulary lacks.
#include "core/errors.h"
#include "core/files.h"
#include "fuzz.h"
#include "interop/gguf_tokenizer.h"
#include "scratch_file.h"

namespace maniple {
namespace {

constexpr int64_t kVocabulary = 8;

const char* kSplit =
    R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
 "added_tokens": [{"id": 3, "content": "<end>", "special": true}, {"id": 4, "content": "<tool>"}],
 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
   {"type": "Split", "pattern": {"Regex": "\\p{N}| ?[^\\s\\p{L}\\p{N}]+"}, "behavior": "Isolated"},
   {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}})";
const char* kPlain =
    R"({"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": null,
 "pre_tokenizer": {"type": "ByteLevel", "use_regex": true}})";
const char* kConfig = R"({"bos_token_id": 3, "eos_token_id": [3, 4], "pad_token_id": null})";

}  // namespace

std::vector<std::string> fuzz_seeds() {
  return {kSplit + std::string(1, '\0') + kConfig, kPlain,
          R"({"model": {"type": "Unigram", "vocab": [["a", -1.5]]}})"};
}

std::vector<std::string> fuzz_dictionary() {
  return {"null",
          "true",
          "\\n",
          "\"\"",
          "{}",
          "[]",
          "[[]]",
          "\"type\": 1, ",
          "\"special\": \"yes\", ",
          "\"use_regex\": 0, ",
          "\"id\": 4294967296, ",
          "\"Regex\": 1, ",
          "\"pretokenizers\": {}, ",
          std::string(100'000, '[')};
}

void fuzz_one(const std::string& input) {
  static const ScratchFolder folder;
  const size_t end = input.find('\0');
  folder.put("tokenizer.json", input.substr(0, end));
  folder.put("config.json", end == input.npos ? "{}" : input.substr(end + 1));
  std::string warning;
  const GgufMetadata out = folder_tokenizer(folder.path(), kVocabulary, &warning);
  MANIPLE_INVARIANT(!out.empty() || !warning.empty(), "no tokenizer and no word about it");
  for (const auto& [key, value] : out) {
    if (const auto* id = std::get_if<uint32_t>(&value))
      MANIPLE_INVARIANT(*id < kVocabulary, "{} is {}", key, *id);
    if (key == "tokenizer.ggml.tokens") {
      const auto& tokens = std::get<std::vector<std::string>>(value);
      MANIPLE_INVARIANT(tokens.size() == kVocabulary, "{} tokens", tokens.size());
      for (const std::string& token : tokens) MANIPLE_INVARIANT(!token.empty(), "a token is empty");
    }
  }
}

}  // namespace maniple

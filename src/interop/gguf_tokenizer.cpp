#include "interop/gguf_tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

using nlohmann::json;

constexpr int32_t kNormal = 1, kControl = 3, kUserDefined = 4,
                  kUnused = 5;  // llama.cpp's token types

std::string utf8(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

// GPT-2's printable stand-in of a byte: itself where printable, else the next of 256, 257, …
std::string byte_character(int byte) {
  const auto printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
  };
  if (printable(byte)) return utf8(static_cast<uint32_t>(byte));
  uint32_t next = 256;
  for (int b = 0; b < byte; ++b) next += !printable(b);
  return utf8(next);
}

GgufMetadata metadata(const std::string& pre, std::vector<std::string> tokens,
                      std::vector<int32_t> types, std::vector<std::string> merges) {
  return {{"tokenizer.ggml.model", std::string("gpt2")},
          {"tokenizer.ggml.pre", pre},
          {"tokenizer.ggml.tokens", std::move(tokens)},
          {"tokenizer.ggml.token_type", std::move(types)},
          {"tokenizer.ggml.merges", std::move(merges)}};
}

// All pre-tokenizers of a tokenizer.json, those in a sequence one by one.
std::vector<json> pre_tokenizers(const json& tokenizer) {
  const json pre = tokenizer.value("pre_tokenizer", json());
  if (!pre.is_object()) return {};
  if (pre.value("type", "") != "Sequence") return {pre};
  const json list = pre.value("pretokenizers", json::array());
  return {list.begin(), list.end()};
}

// llama.cpp knows splitting rules by name. "": not byte-level.
std::string pre_name(const json& tokenizer, std::string* warning) {
  bool byte_level = false, split_by_gpt2 = false;
  std::string regex;
  for (const json& pre : pre_tokenizers(tokenizer)) {
    if (!pre.is_object()) continue;
    if (pre.value("type", "") == "ByteLevel") {
      byte_level = true;
      split_by_gpt2 = pre.value("use_regex", true);
    }
    if (pre.value("type", "") == "Split" && pre.contains("pattern") && pre["pattern"].is_object())
      regex = pre["pattern"].value("Regex", "");
  }
  if (!byte_level) return "";
  const std::string words = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
  const std::string rest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  if (regex == words + "\\p{N}" + rest) return "qwen2";
  if (regex == words + "\\p{N}{1,3}" + rest) return "llama-bpe";
  if (regex.empty() && split_by_gpt2) return "gpt-2";
  if (!regex.empty())
    *warning =
        "tokenizer.json splits text by a rule that has no known name: tokenizer.ggml.pre is "
        "'default', "
        "and a runtime may tokenise otherwise";
  return "default";
}

// Integer ids of config.json, the first where there is a list.
void add_special(const json& config, const char* field, const char* key, GgufMetadata& out) {
  json id = config.value(field, json());
  if (id.is_array() && !id.empty()) id = id[0];
  if (id.is_number_unsigned()) out.emplace_back(key, id.get<uint32_t>());
}

}  // namespace

GgufMetadata byte_tokenizer(int64_t vocab_size) {
  MANIPLE_INVARIANT(vocab_size >= 257, "{} ids", vocab_size);
  std::vector<std::string> tokens;
  std::vector<int32_t> types(256, kNormal);
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(byte_character(byte));
  tokens.push_back("<|endoftext|>");
  types.push_back(kControl);
  for (int64_t id = 257; id < vocab_size; ++id) {
    tokens.push_back(fmt::format("[PAD{}]", id));
    types.push_back(kUnused);
  }
  // Readers want a list of merges. The halves of this one are no tokens, so it never applies.
  GgufMetadata out = metadata("default", std::move(tokens), std::move(types), {"[PAD [PAD"});
  out.emplace_back("tokenizer.ggml.bos_token_id", uint32_t{256});
  out.emplace_back("tokenizer.ggml.eos_token_id", uint32_t{256});
  out.emplace_back("tokenizer.ggml.add_bos_token", false);
  return out;
}

GgufMetadata folder_tokenizer(const std::string& folder, int64_t vocab_size, std::string* warning) {
  const std::string path = folder + "/tokenizer.json";
  if (folder.empty() || !std::filesystem::exists(path)) {
    *warning =
        "there is no tokenizer.json: the file has no tokenizer, and runtimes that need one refuse "
        "it";
    return {};
  }
  const json tokenizer = json::parse(read_file(path, "tokenizer"), nullptr, false);
  const auto fail = [&](const std::string& why) {
    throw DataError(fmt::format("reading {}: {}", path, why));
  };
  if (!tokenizer.is_object()) fail("it is not a JSON object");
  const json model = tokenizer.value("model", json());
  const bool bpe = model.is_object() && model.contains("vocab") && model["vocab"].is_object() &&
                   model.contains("merges") && model["merges"].is_array();
  const std::string pre = bpe ? pre_name(tokenizer, warning) : "";
  if (pre.empty()) {
    *warning =
        "tokenizer.json is no byte-level BPE: the file has no tokenizer, and runtimes that need "
        "one "
        "refuse it";
    return {};
  }
  std::vector<std::string> tokens(vocab_size);
  std::vector<int32_t> types(vocab_size, kUnused);
  const auto put = [&](const json& id, const std::string& token, int32_t type) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size))
      fail(fmt::format("the token '{}' has the id {}, the model has {} ids", token, id.dump(),
                       vocab_size));
    tokens[id.get<uint64_t>()] = token;
    types[id.get<uint64_t>()] = type;
  };
  for (const auto& [token, id] : model["vocab"].items()) put(id, token, kNormal);
  for (const json& added : tokenizer.value("added_tokens", json::array())) {
    if (!added.is_object() || !added.contains("content") || !added["content"].is_string())
      fail("an entry of added_tokens has no content");
    put(added.value("id", json()), added["content"].get<std::string>(),
        added.value("special", false) ? kControl : kUserDefined);
  }
  for (int64_t id = 0; id < vocab_size; ++id)
    if (tokens[id].empty()) tokens[id] = fmt::format("[PAD{}]", id);
  std::vector<std::string> merges;
  for (const json& merge : model["merges"]) {
    if (merge.is_string())
      merges.push_back(merge.get<std::string>());
    else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    else
      fail("an entry of merges is neither a text nor a pair");
  }
  GgufMetadata out = metadata(pre, std::move(tokens), std::move(types), std::move(merges));
  if (std::filesystem::exists(folder + "/config.json")) {
    const json config =
        json::parse(read_file(folder + "/config.json", "model config"), nullptr, false);
    if (config.is_object()) {
      add_special(config, "bos_token_id", "tokenizer.ggml.bos_token_id", out);
      add_special(config, "eos_token_id", "tokenizer.ggml.eos_token_id", out);
      add_special(config, "pad_token_id", "tokenizer.ggml.padding_token_id", out);
    }
  }
  out.emplace_back("tokenizer.ggml.add_bos_token", false);
  return out;
}

}  // namespace maniple

#include "interop/gguf_tokenizer.h"

#include <filesystem>

#include "core/errors.h"
#include "core/text.h"
#include "interop/json_file.h"

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

// Fields of an object, or what stands for one that is missing or of another type.
std::string text(const json& object, const char* key) {
  const auto field = object.find(key);
  return field != object.end() && field->is_string() ? field->get<std::string>() : "";
}
bool flag(const json& object, const char* key, bool otherwise) {
  const auto field = object.find(key);
  return field != object.end() && field->is_boolean() ? field->get<bool>() : otherwise;
}
bool is_list(const json& object, const char* key) {
  return object.contains(key) && object[key].is_array();
}

// All pre-tokenizers of a tokenizer.json, those in a sequence one by one.
std::vector<json> pre_tokenizers(const json& tokenizer) {
  const json pre = tokenizer.value("pre_tokenizer", json());
  if (!pre.is_object()) return {};
  if (text(pre, "type") != "Sequence") return {pre};
  if (!is_list(pre, "pretokenizers")) return {};
  return {pre["pretokenizers"].begin(), pre["pretokenizers"].end()};
}

// llama.cpp knows splitting rules by name. "": not byte-level.
std::string pre_name(const json& tokenizer, std::string* warning) {
  bool byte_level = false, split_by_gpt2 = false;
  std::string regex;
  for (const json& pre : pre_tokenizers(tokenizer)) {
    if (!pre.is_object()) continue;
    if (text(pre, "type") == "ByteLevel") {
      byte_level = true;
      split_by_gpt2 = flag(pre, "use_regex", true);
    }
    if (text(pre, "type") == "Split" && pre.contains("pattern") && pre["pattern"].is_object())
      regex = text(pre["pattern"], "Regex");
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

// Ids of config.json, the first where there is a list. Configs name padding that is no id (-1) or
// that the vocabulary lacks: those are left out.
void add_special(const json& config, const char* field, const char* key, int64_t vocab_size,
                 GgufMetadata& out) {
  json id = config.value(field, json());
  if (id.is_array() && !id.empty()) id = id[0];
  if (id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab_size))
    out.emplace_back(key, id.get<uint32_t>());
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
  const json tokenizer = read_json_object(path, "tokenizer");
  const auto fail = [&](const std::string& why) {
    throw DataError(fmt::format("reading {}: {}", path, one_line(why)));
  };
  const json model = tokenizer.value("model", json());
  const bool bpe = model.is_object() && model.contains("vocab") && model["vocab"].is_object() &&
                   is_list(model, "merges");
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
  for (const json& added : is_list(tokenizer, "added_tokens") ? tokenizer["added_tokens"] : json()) {
    if (!added.is_object() || text(added, "content").empty())
      fail("an entry of added_tokens has no content");
    put(added.value("id", json()), text(added, "content"),
        flag(added, "special", false) ? kControl : kUserDefined);
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
    const json config = read_json_object(folder + "/config.json", "model config");
    for (const auto& [field, key] : {std::pair("bos_token_id", "tokenizer.ggml.bos_token_id"),
                                     std::pair("eos_token_id", "tokenizer.ggml.eos_token_id"),
                                     std::pair("pad_token_id", "tokenizer.ggml.padding_token_id")})
      add_special(config, field, key, vocab_size, out);
  }
  out.emplace_back("tokenizer.ggml.add_bos_token", false);
  return out;
}

}  // namespace maniple

// GGUF files: bytes of blocks, what is written is read back, every model goes there and back.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/files.h"
#include "interop/gguf_blocks.h"
#include "interop/gguf_model.h"
#include "interop/gguf_tokenizer.h"
#include "interop/hf_names.h"
#include "interop/safetensors.h"
#include "quant/grid.h"

namespace maniple {
namespace {

using nlohmann::json;

class Gguf : public testing::Test {
 protected:
  Gguf() : folder_(std::filesystem::temp_directory_path() / fmt::format("gguf-{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~Gguf() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ / name; }

 private:
  std::filesystem::path folder_;
};

std::string hex(const std::string& bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

at::Tensor example() {
  std::vector<float> x;
  for (int i = 0; i < 32; ++i) x.push_back(static_cast<float>(37 * i % 64 - 31) / 16);
  return at::tensor(x, at::TensorOptions(at::kFloat));
}

TEST(GgufBlocks, HaveTheBytesOfTheExamples) {
  EXPECT_EQ(hex(gguf_encode(GgufType::kQ4_0, example())), "00b4cf379d047be248bf269df36ad148ae15");
  EXPECT_EQ(hex(gguf_encode(GgufType::kQ8_0, example())),
            "08248518ad40d467fc9124b94be073089d30c457ec7f14a93cd063f88d20b547dc6f");
  EXPECT_EQ(hex(gguf_encode(GgufType::kQ4_0, at::zeros({32}))), "0080" + std::string(32, '8'));
}

TEST(GgufBlocks, DecodeToWhatTheGridSays) {
  const at::Tensor w = at::randn({8, 64}) * 0.02;
  at::Tensor fake = w.clone();
  fake_quantize_(make_grid("q4_0", at::kFloat), fake);
  const std::string bytes = gguf_encode(GgufType::kQ4_0, w);
  EXPECT_TRUE(
      at::equal(gguf_decode(GgufType::kQ4_0, bytes.data(), w.numel()).view(w.sizes()), fake));
  EXPECT_EQ(gguf_encode(GgufType::kQ4_0, fake), bytes);  // idempotent to the byte
  for (const GgufType type : {GgufType::kF32, GgufType::kF16, GgufType::kBF16, GgufType::kQ8_0}) {
    const std::string once = gguf_encode(type, w);
    EXPECT_EQ(static_cast<int64_t>(once.size()), gguf_bytes(type, w.numel()));
    const at::Tensor back = gguf_decode(type, once.data(), w.numel());
    EXPECT_LE((back.view(w.sizes()).to(at::kFloat) - w).abs().max().item<double>(), 5e-4);
  }
}

TEST_F(Gguf, WhatIsWrittenIsReadBack) {
  const GgufMetadata metadata = {{"general.architecture", std::string("none")},
                                 {"a.count", uint32_t{7}},
                                 {"a.real", 0.25f},
                                 {"a.flag", true},
                                 {"a.wide", int64_t{-5}},
                                 {"a.texts", std::vector<std::string>{"x", "", "yz"}},
                                 {"a.types", std::vector<int32_t>{1, -2}}};
  GgufWriter writer(path("a.gguf"), metadata,
                    {{"m", {4, 32}, GgufType::kQ8_0}, {"v", {3}, GgufType::kF32}});
  const at::Tensor m = at::randn({4, 32}), v = at::randn({3});
  writer.write("v", 0, gguf_encode(GgufType::kF32, v));
  for (int64_t row = 3; row >= 0; --row)
    writer.write("m", row * 32, gguf_encode(GgufType::kQ8_0, m[row]));
  writer.finish();
  const GgufFile file(path("a.gguf"));
  for (const auto& [key, value] : metadata) EXPECT_EQ(file.metadata().at(key), value) << key;
  EXPECT_TRUE(at::equal(file.read("v", 0, 3), v));
  EXPECT_EQ(file.tensors().at("m").shape, (std::vector<int64_t>{4, 32}));
  EXPECT_LE((file.read("m", 32, 64).view({2, 32}) - m.narrow(0, 1, 2)).abs().max().item<double>(),
            0.02);
}

TEST_F(Gguf, DamagedFilesAreRefused) {
  GgufWriter writer(
      path("a.gguf"),
      {{"general.architecture", std::string("llama")}, {"general.alignment", uint32_t{32}}},
      {{"m", {2, 32}, GgufType::kQ4_0}});
  writer.write("m", 0, gguf_encode(GgufType::kQ4_0, at::randn({2, 32})));
  writer.finish();
  const std::string good = read_file(path("a.gguf"));
  const auto refused = [&](std::string bytes, const std::string& fragment) {
    write_file_atomic(path("bad.gguf"), bytes);
    try {
      GgufFile file(path("bad.gguf"));
      ADD_FAILURE() << "accepted: " << fragment;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
    }
  };
  const auto with = [&](size_t at, const std::string& bytes) {
    return std::string(good).replace(at, bytes.size(), bytes);
  };
  refused("", "GGUF");
  refused(with(0, "GGUX"), "does not begin with GGUF");
  refused(with(4, "\2"), "version 2");
  refused(good.substr(0, good.size() - 40), "beyond");
  refused(good.substr(0, 60), "");
  refused(with(8, std::string(8, '\x7f')), "tensors do not fit");
  refused(with(16, std::string(8, '\x7f')), "do not fit");
  const size_t alignment = good.find("general.alignment") + 17 + 4;
  refused(with(alignment, std::string("\x03\0\0\0", 4)), "power of two");
  const size_t tensor = good.find("m\x02\0\0\0");
  EXPECT_THROW(GgufTensors(path("a.gguf")), DataError);  // a llama without metadata
  if (tensor != std::string::npos)
    refused(with(tensor + 5, std::string("\x21", 1)), "multiple of the block");
}

class GgufFamily : public testing::TestWithParam<std::string> {};

// The config that is read back computes the same as the one that was written.
TEST_P(GgufFamily, ConfigSurvivesItsMetadata) {
  json config = preset_config(GetParam());
  config["rope_theta"] = 123456.0;
  const ModelConfig model = parse_model_config(config);
  const std::string file =
      std::filesystem::temp_directory_path() / fmt::format("{}-{}.gguf", GetParam(), ::getpid());
  std::vector<GgufTensor> tensors;
  for (const GgufPart& part : gguf_parts(model))
    tensors.push_back({part.name, part.shape, GgufType::kF32});
  {
    GgufWriter writer(file, gguf_metadata(model, "x"), tensors);
    for (const GgufTensor& t : tensors)
      writer.write(t.name, 0, gguf_encode(GgufType::kF32, at::randn(t.shape)));
    writer.finish();
  }
  const GgufTensors read(file);
  ModelConfig back = parse_model_config(read.config());
  back.initializer_range = model.initializer_range;
  back.router_aux_coef = model.router_aux_coef;
  EXPECT_EQ(back, model);
  for (const NamedShape& parameter : model_parameters(model))
    for (const HubSlice& slice : hub_slices(model, parameter.name))
      EXPECT_EQ(read.read(slice.name).sizes().vec(), slice.shape) << slice.name;
  std::filesystem::remove(file);
}

TEST_P(GgufFamily, ChangesOfATensorAreUndone) {
  const ModelConfig model = parse_model_config(preset_config(GetParam()));
  for (const GgufPart& part : gguf_parts(model)) {
    const auto slices = hub_slices(model, part.parameter);
    const at::Tensor w = at::rand(slices.front().shape) * 0.5;
    const at::Tensor stored = to_gguf(part, w);
    const at::Tensor back = from_gguf(part, stored, slices.front().shape);
    // 1 + w computes the same after the way back, though w itself is rounded.
    EXPECT_TRUE(at::equal(to_gguf(part, back), stored)) << part.name;
    if (part.change == GgufPart::kPermute) {
      EXPECT_FALSE(at::equal(stored, w));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GgufFamily,
                         testing::Values("qwen3_moe", "qwen2_moe", "mixtral", "gemma3_text"),
                         [](const auto& info) { return info.param; });

TEST(GgufParts, RefuseWhatTheFormatCannotSay) {
  const auto refused = [](const std::string& preset, const json& changes,
                          const std::string& fragment) {
    json config = preset_config(preset);
    config.update(changes);
    try {
      gguf_parts(parse_model_config(config));
      ADD_FAILURE() << "accepted: " << fragment;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
    }
  };
  refused("house", json::object(), "house");
  refused("qwen3_moe", {{"mlp_only_layers", {0}}}, "layer 0 is dense");
  refused("qwen2_moe", {{"decoder_sparse_step", 2}}, "is dense");
  refused("qwen3_moe", {{"norm_topk_prob", false}}, "norm_topk_prob is false");
  refused("qwen2_moe", {{"norm_topk_prob", true}}, "norm_topk_prob is true");
  refused("qwen2_moe", {{"qkv_bias", false}}, "qkv_bias");
  refused("qwen2_moe", {{"tie_word_embeddings", true}}, "tied");
  refused("gemma3_text", {{"tie_word_embeddings", false}}, "not tied");
  refused("gemma3_text", {{"sliding_window_pattern", 3}}, "sliding");
  refused("gemma3_text", {{"query_pre_attn_scalar", 99}}, "query_pre_attn_scalar");
  refused("mixtral", {{"sliding_window", 64}}, "sliding window");
  refused("mixtral", {{"hidden_act", "gelu_pytorch_tanh"}}, "activation");
}

TEST(GgufTokenizer, BytesAreGpt2sCharacters) {
  const GgufMetadata out = byte_tokenizer(260);
  const auto& tokens = std::get<std::vector<std::string>>(out[2].second);
  ASSERT_EQ(tokens.size(), 260u);
  EXPECT_EQ(tokens['A'], "A");
  EXPECT_EQ(tokens[' '], "\xc4\xa0");   // Ġ
  EXPECT_EQ(tokens['\n'], "\xc4\x8a");  // Ċ
  EXPECT_EQ(tokens[0xff], "\xc3\xbf");
  EXPECT_EQ(tokens[0xad], "\xc5\x83");
  EXPECT_EQ(tokens[256], "<|endoftext|>");
}

TEST_F(Gguf, TokenizerOfAFolder) {
  std::string warning;
  EXPECT_TRUE(folder_tokenizer(path(""), 8, &warning).empty());
  EXPECT_NE(warning.find("no tokenizer.json"), std::string::npos);
  json tokenizer = {
      {"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}},
      {"added_tokens", {{{"id", 3}, {"content", "<end>"}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"use_regex", true}}}};
  const auto read = [&](int64_t vocab) {
    write_file_atomic(path("tokenizer.json"), tokenizer.dump());
    warning.clear();
    return folder_tokenizer(path(""), vocab, &warning);
  };
  const GgufMetadata out = read(6);
  EXPECT_EQ(warning, "");
  EXPECT_EQ(std::get<std::string>(out[1].second), "gpt-2");
  EXPECT_EQ(std::get<std::vector<std::string>>(out[2].second),
            (std::vector<std::string>{"a", "b", "ab", "<end>", "[PAD4]", "[PAD5]"}));
  EXPECT_EQ(std::get<std::vector<int32_t>>(out[3].second),
            (std::vector<int32_t>{1, 1, 1, 3, 5, 5}));
  EXPECT_EQ(std::get<std::vector<std::string>>(out[4].second), (std::vector<std::string>{"a b"}));
  EXPECT_THROW(read(3), DataError);  // an id beyond the vocabulary
  tokenizer["model"]["merges"] = json::array({json::array({"a", "b"})});
  EXPECT_EQ(std::get<std::vector<std::string>>(read(6)[4].second),
            (std::vector<std::string>{"a b"}));
  write_file_atomic(path("config.json"), R"({"eos_token_id": [3, 9], "pad_token_id": 6})");
  const GgufMetadata special = read(6);
  EXPECT_EQ(special[5].first, "tokenizer.ggml.eos_token_id");
  EXPECT_EQ(std::get<uint32_t>(special[5].second), 3u);
  EXPECT_EQ(special[6].first, "tokenizer.ggml.add_bos_token");  // 6 is no id of the model
  tokenizer["pre_tokenizer"]["type"] = 1;
  EXPECT_TRUE(read(6).empty());
  EXPECT_NE(warning.find("byte-level"), std::string::npos);
  tokenizer["pre_tokenizer"] = nullptr;
  EXPECT_TRUE(read(6).empty());
  EXPECT_NE(warning.find("byte-level"), std::string::npos);
  for (const std::string& text : {std::string("[]"), "{\"model\": " + std::string(100'000, '[')}) {
    write_file_atomic(path("tokenizer.json"), text);
    EXPECT_THROW(folder_tokenizer(path(""), 8, &warning), DataError);
  }
}

}  // namespace
}  // namespace maniple

#include "model/model_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "core/errors.h"

namespace maniple {
namespace {

using nlohmann::json;

json golden(const std::string& file) {
  return json::parse(std::ifstream(std::string(MANIPLE_TEST_DATA) + "/golden/" + file));
}

json edited(const std::string& preset, const json& changes) {
  json config = preset_config(preset);
  config.update(changes);
  return config;
}

// The published models of spec/model.md 1.13 that this reader supports.
json qwen3_30b() {
  return edited("qwen3_moe", {{"vocab_size", 151936},
                              {"hidden_size", 2048},
                              {"num_hidden_layers", 48},
                              {"num_attention_heads", 32},
                              {"num_key_value_heads", 4},
                              {"head_dim", 128},
                              {"num_experts", 128},
                              {"num_experts_per_tok", 8},
                              {"moe_intermediate_size", 768}});
}

json qwen3_235b() {
  json config = qwen3_30b();
  config.update({{"hidden_size", 4096},
                 {"num_hidden_layers", 94},
                 {"num_attention_heads", 64},
                 {"moe_intermediate_size", 1536}});
  return config;
}

json mixtral_8x7b() {
  return edited("mixtral", {{"vocab_size", 32000},
                            {"hidden_size", 4096},
                            {"num_hidden_layers", 32},
                            {"num_attention_heads", 32},
                            {"num_key_value_heads", 8},
                            {"head_dim", nullptr},
                            {"intermediate_size", 14336}});
}

json qwen2_57b() {
  return edited("qwen2_moe", {{"vocab_size", 151936},
                              {"hidden_size", 3584},
                              {"num_hidden_layers", 28},
                              {"num_attention_heads", 28},
                              {"num_key_value_heads", 4},
                              {"head_dim", nullptr},
                              {"num_experts", 64},
                              {"num_experts_per_tok", 8},
                              {"moe_intermediate_size", 2560},
                              {"shared_expert_intermediate_size", 20480}});
}

json qwen15_a27b() {
  return edited("qwen2_moe", {{"vocab_size", 151936},
                              {"hidden_size", 2048},
                              {"num_hidden_layers", 24},
                              {"num_attention_heads", 16},
                              {"num_key_value_heads", 16},
                              {"head_dim", nullptr},
                              {"num_experts", 60},
                              {"num_experts_per_tok", 4},
                              {"moe_intermediate_size", 1408},
                              {"shared_expert_intermediate_size", 5632}});
}

json gemma3(int64_t h, int64_t layers, int64_t heads, int64_t kv, int64_t d, int64_t f, int64_t v) {
  return edited("gemma3_text", {{"vocab_size", v},
                                {"hidden_size", h},
                                {"num_hidden_layers", layers},
                                {"num_attention_heads", heads},
                                {"num_key_value_heads", kv},
                                {"head_dim", d},
                                {"intermediate_size", f}});
}

// Expects a ConfigError that names the field and the value.
void expect_refused(const json& config, const std::string& field, const std::string& value = "") {
  try {
    parse_model_config(config);
    ADD_FAILURE() << field << " = " << value << " was accepted";
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(field + (value.empty() ? "" : " = " + value)), std::string::npos)
        << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

class GoldenConfig : public testing::TestWithParam<std::pair<const char*, int64_t>> {};

TEST_P(GoldenConfig, BothGenerationsAreTheSameModelOfTheGoldenSize) {
  const auto [family, parameters] = GetParam();
  const ModelConfig v4 = parse_model_config(golden(std::string(family) + "/config.json"));
  const ModelConfig v5 = parse_model_config(golden(std::string(family) + "/config_v5.json"));
  EXPECT_TRUE(v4 == v5);
  EXPECT_EQ(v4.model_type, family);
  EXPECT_EQ(num_parameters(v4), parameters);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenConfig,
                         testing::Values(std::pair{"qwen3_moe", int64_t{29152}},
                                         std::pair{"qwen2_moe", int64_t{23744}},
                                         std::pair{"mixtral", int64_t{29088}},
                                         std::pair{"gemma3_text", int64_t{67552}}),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(ModelConfig, ReadsWhatEachFamilyIs) {
  const ModelConfig qwen3 = parse_model_config(golden("qwen3_moe/config.json"));
  EXPECT_TRUE(qwen3.qk_norm && qwen3.normalize_topk && !qwen3.qkv_bias && !qwen3.norm_plus_one);
  EXPECT_EQ(qwen3.head_dim, 16);
  EXPECT_DOUBLE_EQ(qwen3.attention_scale, 0.25);
  EXPECT_EQ(qwen3.sliding_window, 0);
  EXPECT_TRUE(qwen3.layers[0].moe && qwen3.layers[1].moe);

  const ModelConfig qwen2 = parse_model_config(golden("qwen2_moe/config.json"));
  EXPECT_TRUE(qwen2.qkv_bias && qwen2.shared_expert_gate && !qwen2.normalize_topk);
  EXPECT_EQ(qwen2.shared_expert_size, 24);
  EXPECT_EQ(qwen2.intermediate_size, 48);
  EXPECT_EQ(qwen2.head_dim, 8);
  EXPECT_FALSE(qwen2.layers[0].moe);
  EXPECT_TRUE(qwen2.layers[1].moe);

  const ModelConfig mixtral = parse_model_config(golden("mixtral/config.json"));
  EXPECT_EQ(mixtral.expert_size, 24);
  EXPECT_TRUE(mixtral.normalize_topk && !mixtral.tied_head);
  EXPECT_EQ(mixtral.rms_norm_eps, 1e-5);
  EXPECT_EQ(mixtral.rope_full.theta, 1e6);

  const ModelConfig gemma = parse_model_config(golden("gemma3_text/config.json"));
  EXPECT_TRUE(gemma.norm_plus_one && gemma.post_norms && gemma.qk_norm && gemma.scale_embedding);
  EXPECT_TRUE(gemma.tied_head);
  EXPECT_EQ(gemma.activation, Activation::kGeluTanh);
  EXPECT_EQ(gemma.sliding_window, 4);
  EXPECT_TRUE(gemma.layers[4].sliding && !gemma.layers[5].sliding && !gemma.layers[0].moe);
  EXPECT_EQ(gemma.rope_full, (RopeConfig{1e6, 8}));
  EXPECT_EQ(gemma.rope_sliding, (RopeConfig{1e4, 1}));
}

TEST(ModelConfig, PresetsAreSmallAndParse) {
  for (const char* preset : {"house", "qwen3_moe", "qwen2_moe", "mixtral", "gemma3_text"}) {
    const ModelConfig model = parse_model_config(preset_config(preset));
    EXPECT_EQ(model.model_type, preset);
    EXPECT_GE(model.vocab_size, 257) << "the byte tokenizer needs 257 ids";
    EXPECT_LT(num_parameters(model), 5'000'000);
    EXPECT_LE(num_active_parameters(model), num_parameters(model));
  }
  EXPECT_THROW(preset_config("gpt2"), ConfigError);
}

TEST(ModelConfig, HouseIsGemmaAttentionWithFineGrainedExperts) {
  const ModelConfig house = parse_model_config(preset_config("house"));
  EXPECT_TRUE(house.norm_plus_one && house.post_norms && house.qk_norm && house.scale_embedding);
  EXPECT_TRUE(house.tied_head && house.normalize_topk && house.router_bias);
  EXPECT_FALSE(house.shared_expert_gate);
  EXPECT_EQ(house.router_score, RouterScore::kSigmoid);
  EXPECT_EQ(house.activation, Activation::kGeluTanh);
  EXPECT_EQ(house.num_experts, 16);
  EXPECT_EQ(house.experts_per_token, 4);
  EXPECT_DOUBLE_EQ(house.attention_scale, 1 / std::sqrt(32.0));
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(house.layers[i].moe);
    EXPECT_EQ(house.layers[i].sliding, i != 3);
  }
  EXPECT_EQ(parse_model_config(edited("house", {{"scoring_func", "softmax"}})).router_score,
            RouterScore::kSoftmax);
  expect_refused(edited("house", {{"scoring_func", "tanh"}}), "scoring_func", "tanh");
  const ModelConfig grouped = parse_model_config(
      edited("house", {{"n_group", 8}, {"topk_group", 2}, {"routed_scaling_factor", 2.5}}));
  EXPECT_EQ(grouped.expert_groups, 8);
  EXPECT_EQ(grouped.groups_per_token, 2);
  EXPECT_EQ(grouped.routed_scale, 2.5);
  expect_refused(edited("house", {{"n_group", 5}, {"topk_group", 2}}), "n_group", "5");
  expect_refused(edited("house", {{"n_group", 16}, {"topk_group", 8}}), "n_group", "16");
  expect_refused(edited("house", {{"n_group", 4}, {"topk_group", 5}}), "topk_group", "5");
  expect_refused(edited("house", {{"n_group", 8}, {"topk_group", 1}}), "topk_group", "1");
  expect_refused(edited("house", {{"topk_group", 2}}), "topk_group", "2");
  expect_refused(edited("qwen3_moe", {{"n_group", 4}}), "n_group", "4");
  expect_refused(edited("mixtral", {{"routed_scaling_factor", 2.5}}), "routed_scaling_factor", "2.5");
  expect_refused(edited("house", {{"num_expert", 4}}), "num_expert", "4");
  expect_refused(edited("house", {{"num\nexpert", 4}}), "num expert", "4");  // in one line
}

TEST(ModelConfig, CountsOfPublishedModelsAreExact) {
  const struct {
    json config;
    int64_t total, active;  // active 0: not published
  } models[] = {
      {mixtral_8x7b(), 46'702'792'704, 12'879'925'248},
      {qwen2_57b(), 57'408'658'944, 14'249'270'784},
      {qwen15_a27b(), 14'315'784'192, 2'689'173'504},
      {qwen3_30b(), 30'532'122'624, 3'353'032'704},
      {gemma3(1152, 26, 4, 1, 256, 6912, 262144), 999'885'952, 0},
      {gemma3(2560, 34, 8, 4, 256, 10240, 262208), 3'880'263'168, 0},
      {gemma3(3840, 48, 16, 8, 256, 15360, 262208), 11'766'034'176, 0},
      {gemma3(5376, 62, 32, 16, 128, 21504, 262208), 27'009'346'304, 0},
  };
  for (const auto& model : models) {
    const ModelConfig parsed = parse_model_config(model.config);
    EXPECT_EQ(num_parameters(parsed), model.total);
    EXPECT_EQ(num_active_parameters(parsed), model.active ? model.active : model.total);
  }
}

TEST(ModelConfig, FlopsPerTokenMatchTheSpecification) {
  EXPECT_NEAR(flops_per_token(parse_model_config(mixtral_8x7b()), 4096) / 1e9, 79.7, 0.05);
  EXPECT_NEAR(flops_per_token(parse_model_config(qwen3_30b()), 4096) / 1e9, 23.08, 0.005);
  EXPECT_NEAR(flops_per_token(parse_model_config(qwen3_235b()), 4096) / 1e9, 148.3, 0.05);
}

TEST(ModelConfig, AWindowSavesTheScoresOutsideIt) {
  ModelConfig model = parse_model_config(golden("gemma3_text/config.json"));
  // By hand: of 16 queries the first 4 see 1, 2, 3, 4 keys, the others 4.
  const double windowed = (1 + 2 + 3 + 12 * 4 + 4) / 16.0, full = 17 / 2.0;
  const double saved = 3 * 5 * 4 * 64 * (full - windowed);
  const double with = flops_per_token(model, 16);
  for (LayerConfig& layer : model.layers) layer.sliding = false;
  EXPECT_NEAR(flops_per_token(model, 16) - with, saved, 1e-6);
  EXPECT_EQ(flops_per_token(parse_model_config(golden("gemma3_text/config.json")), 4),
            flops_per_token(model, 4));
}

TEST(ModelConfig, LayersSlideByTheRuleOfTheFamily) {
  const auto slides = [](const json& config) {
    std::string word;
    for (const LayerConfig& layer : parse_model_config(config).layers)
      word += layer.sliding ? 's' : 'f';
    return word;
  };
  const json four = {{"num_hidden_layers", 4}, {"sliding_window", 8}, {"use_sliding_window", true}};
  EXPECT_EQ(slides(edited("qwen3_moe", four)), "ssss");
  json limited = four;
  limited["max_window_layers"] = 3;
  EXPECT_EQ(slides(edited("qwen2_moe", limited)), "sfsf");
  limited["layer_types"] = {"full_attention", "full_attention", "full_attention",
                            "sliding_attention"};
  EXPECT_EQ(slides(edited("qwen2_moe", limited)), "fffs");
  EXPECT_EQ(slides(edited("mixtral", {{"sliding_window", 8}})), "ss");
  EXPECT_EQ(slides(edited("mixtral", json::object())), "ff");
  EXPECT_EQ(slides(edited("gemma3_text", {{"sliding_window_pattern", 2}})), "sfsfsf");
  EXPECT_EQ(parse_model_config(edited("qwen3_moe", {{"sliding_window", 8}})).sliding_window, 0);
  expect_refused(edited("mixtral", {{"layer_types", {"sliding_attention", "full_attention"}}}),
                 "layer_types[0]", "\"sliding_attention\"");
  expect_refused(edited("gemma3_text", {{"layer_types", {"full_attention"}}}), "layer_types");
}

TEST(ModelConfig, DenseLayersByStepAndList) {
  const json config =
      edited("qwen3_moe",
             {{"num_hidden_layers", 4}, {"decoder_sparse_step", 2}, {"mlp_only_layers", {3}}});
  const ModelConfig model = parse_model_config(config);
  EXPECT_FALSE(model.layers[0].moe || model.layers[2].moe || model.layers[3].moe);
  EXPECT_TRUE(model.layers[1].moe);
  EXPECT_EQ(model.intermediate_size, 128);
  expect_refused(edited("qwen3_moe", {{"mlp_only_layers", {2}}}), "mlp_only_layers", "[2]");
}

TEST(ModelConfig, RefusesWhatIsNotSupported) {
  expect_refused(edited("mixtral", {{"model_type", "deepseek_v3"}}), "model_type", "deepseek_v3");
  expect_refused(edited("gemma3_text", {{"attn_logit_softcapping", 50.0}}),
                 "attn_logit_softcapping", "50.0");
  expect_refused(edited("gemma3_text", {{"final_logit_softcapping", 30.0}}),
                 "final_logit_softcapping", "30.0");
  expect_refused(edited("gemma3_text", {{"use_bidirectional_attention", true}}),
                 "use_bidirectional_attention", "true");
  expect_refused(edited("qwen3_moe", {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}}),
                 "rope_scaling.type", "yarn");
  expect_refused(
      edited("qwen3_moe", {{"rope_theta", nullptr},
                           {"rope_parameters", {{"rope_type", "llama3"}, {"rope_theta", 1e6}}}}),
      "rope_parameters.rope_type", "llama3");
  expect_refused(edited("qwen3_moe", {{"attention_bias", true}}), "attention_bias", "true");
  expect_refused(edited("mixtral", {{"router_jitter_noise", 0.1}}), "router_jitter_noise", "0.1");
  expect_refused(edited("mixtral", {{"attention_dropout", 0.1}}), "attention_dropout", "0.1");
  expect_refused(edited("mixtral", {{"hidden_act", "relu"}}), "hidden_act", "relu");
  expect_refused(edited("mixtral", {{"quantization_config", {{"bits", 4}}}}),
                 "quantization_config");
}

TEST(ModelConfig, RefusesImpossibleValues) {
  const std::string type = "qwen3_moe";
  expect_refused(edited(type, {{"hidden_size", 0}}), "hidden_size", "0");
  expect_refused(edited(type, {{"hidden_size", -4}}), "hidden_size", "-4");
  expect_refused(edited(type, {{"hidden_size", "64"}}), "hidden_size", "\"64\"");
  expect_refused(edited(type, {{"hidden_size", 64.0}}), "hidden_size", "64.0");
  expect_refused(edited(type, {{"hidden_size", nullptr}}), "hidden_size", "(missing)");
  expect_refused(edited(type, {{"hidden_size", 18446744073709551615u}}), "hidden_size");
  expect_refused(edited(type, {{"num_key_value_heads", 3}}), "num_attention_heads", "4");
  expect_refused(edited(type, {{"head_dim", 7}}), "head_dim", "7");
  expect_refused(edited(type, {{"head_dim", nullptr}, {"hidden_size", 66}}), "hidden_size", "66");
  expect_refused(edited(type, {{"num_experts_per_tok", 9}}), "num_experts_per_tok", "9");
  expect_refused(edited(type, {{"num_experts_per_tok", 0}}), "num_experts_per_tok", "0");
  expect_refused(edited(type, {{"num_local_experts", 4}}), "num_experts", "8");
  expect_refused(edited(type, {{"norm_topk_prob", 1}}), "norm_topk_prob", "1");
  expect_refused(edited(type, {{"norm_topk_prob", nullptr}}), "norm_topk_prob", "(missing)");
  expect_refused(edited(type, {{"rms_norm_eps", 0}}), "rms_norm_eps");
  expect_refused(edited(type, {{"rope_theta", -1.0}}), "rope_theta", "-1.0");
  expect_refused(edited(type, {{"num_hidden_layers", 2000000000}}), "num_hidden_layers");
  expect_refused(edited(type, {{"sliding_window", nullptr}, {"use_sliding_window", true}}),
                 "sliding_window", "(missing)");
  expect_refused(
      edited(type, {{"vocab_size", 2000000000}, {"hidden_size", 2000000000}, {"head_dim", 2}}),
      "config");
  expect_refused(json::array(), "config");
  expect_refused(json::object(), "model_type", "(missing)");
}

}  // namespace
}  // namespace maniple

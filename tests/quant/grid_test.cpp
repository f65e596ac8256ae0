// The grids against the byte examples and numbers of spec/model.md 4.2 to 4.6, the fused form
// against the reference, and what every grid promises.
#include "quant/grid.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/errors.h"
#include "quant/fake_quantizer.h"

namespace maniple {
namespace {

const nlohmann::json& numbers() {
  static const auto file =
      nlohmann::json::parse(std::ifstream(MANIPLE_TEST_DATA "/golden/numbers.json"));
  return file.at("qat");
}

at::Tensor tensor_of(const nlohmann::json& list) {
  return at::tensor(list.get<std::vector<float>>(), at::TensorOptions(at::kFloat)).unsqueeze(0);
}

std::vector<int64_t> integers(const at::Tensor& q) {
  const at::Tensor flat = q.to(at::kLong).contiguous();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

struct Named {
  const char* format;
  const char* golden;
};

TEST(Grids, GiveTheIntegersAndScalesOfTheExamples) {
  const at::Tensor x = tensor_of(numbers().at("x"));
  for (const Named& grid : {Named{"int4_channel", "gemma_int4"}, {"int4_g32", "ct_sym_g32"}}) {
    const Quantized got = quantize(make_grid(grid.format, at::kFloat), x);
    const auto& want = numbers().at(grid.golden);
    EXPECT_EQ(got.scale_OG.item<float>(), want.at("scale").get<float>()) << grid.format;
    EXPECT_EQ(integers(got.q_OI), want.at("q").get<std::vector<int64_t>>()) << grid.format;
  }
  const Quantized block = quantize(make_grid("q4_0", at::kFloat), x);
  EXPECT_EQ(block.scale_OG.item<float>(), numbers().at("q4_0").at("d").get<float>());
  EXPECT_EQ(integers(block.q_OI + 8), numbers().at("q4_0").at("q").get<std::vector<int64_t>>());
}

TEST(Grids, PlainConversionMovesATrainedModelAsTheSpecificationSays) {
  at::Tensor x = tensor_of(numbers().at("x"));
  fake_quantize_(make_grid("int4_channel", at::kFloat), x);
  at::Tensor y = x.clone();
  fake_quantize_(make_grid("q4_0", at::kFloat), y);
  EXPECT_NEAR((x - y).abs().max().item<double>(),
              numbers().at("gemma_int4_through_q4_0_max_move").get<double>(), 1e-6);
}

TEST(Grids, SwitchedFp8RoundsAsTheExamples) {
  const auto& want = numbers().at("sfp8_simulated");
  at::Tensor x = tensor_of(want.at("x"));  // the largest is 1.875: the scale is 1
  fake_quantize_(make_grid("sfp8", at::kFloat), x);
  EXPECT_TRUE(at::equal(x, tensor_of(want.at("y")))) << x;
  x = at::tensor({1.875, 1.49e-7, 1.3e-7, 1.12e-7, 1.11e-7, -1.11e-7}, at::kFloat).unsqueeze(0);
  fake_quantize_(make_grid("sfp8", at::kFloat), x);
  const float smallest = 0x1.4p-23f;
  EXPECT_TRUE(
      at::equal(x, at::tensor({1.875f, smallest, smallest, smallest, 0.f, 0.f}).unsqueeze(0)))
      << x;
}

class EveryGrid : public testing::TestWithParam<std::string> {};

at::Tensor sample(int64_t rows, int64_t inputs, double scale, uint64_t seed) {
  at::manual_seed(seed);
  at::Tensor w = at::randn({rows, inputs}) * scale;
  w[0].zero_();
  w[1][0] = w[1][1] = -w[1].abs().max() * 2;  // a tie for the largest, with two signs in row 2
  w[2][5] = w[2].abs().max() * 2;
  w[2][7] = -w[2][5];
  return w;
}

TEST_P(EveryGrid, FusedEqualsReferenceInEveryBit) {
  for (const at::ScalarType model : {at::kFloat, at::kBFloat16})
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble})
      for (const double scale : {0.02, 1e-4, 300.0}) {
        const Grid grid = make_grid(GetParam(), model);
        const at::Tensor w = sample(9, 384, scale, 3).to(type);
        at::Tensor fused = w.clone(), inside = at::empty(w.sizes(), at::kBool);
        at::Tensor inside_reference = at::empty(w.sizes(), at::kBool);
        fake_quantize_(grid, fused, inside);
        EXPECT_TRUE(at::equal(fused, fake_quantize_reference(grid, w, &inside_reference)));
        EXPECT_TRUE(at::equal(inside, inside_reference));
        at::Tensor unmasked = w.clone();
        fake_quantize_(grid, unmasked);
        EXPECT_TRUE(at::equal(fused, unmasked));
        EXPECT_TRUE(fused.isfinite().all().item<bool>());
        EXPECT_EQ(fused[0].abs().max().item<double>(), 0);  // zero is exact
      }
}

TEST_P(EveryGrid, QuantizeAndDequantizeGiveTheFakeQuantizedWeights) {
  if (GetParam() == "sfp8") GTEST_SKIP() << "no integers";
  for (const at::ScalarType model : {at::kFloat, at::kBFloat16}) {
    const Grid grid = make_grid(GetParam(), model);
    const at::Tensor w = sample(7, 256, 0.02, 5);
    at::Tensor fake = w.clone();
    fake_quantize_(grid, fake);
    const Quantized q = quantize(grid, w);
    EXPECT_TRUE(at::equal(fake, dequantize(q)));
    EXPECT_GE(q.q_OI.min().item<int64_t>(), -8);
    EXPECT_LE(q.q_OI.max().item<int64_t>(), 7);
  }
}

TEST_P(EveryGrid, ErrorIsAtMostAStep) {
  const Grid grid = make_grid(GetParam(), at::kFloat);
  const at::Tensor w = sample(16, 512, 0.02, 9);
  at::Tensor fake = w.clone();
  fake_quantize_(grid, fake);
  const at::Tensor largest = w.view({-1, grid.group_of(512)}).abs().amax(1, true);
  const at::Tensor error = (fake - w).view({-1, grid.group_of(512)}).abs();
  EXPECT_TRUE((error <= largest / 7).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryGrid,
                         testing::Values("int4_channel", "q4_0", "int4_g32", "int4_g128", "sfp8"),
                         [](const auto& info) { return info.param; });

TEST(Q4_0, IsIdempotent) {
  const Grid grid = make_grid("q4_0", at::kFloat);
  for (const double scale : {1e-3, 0.05, 10.0}) {
    at::Tensor once = sample(600, 352, scale, 1);
    fake_quantize_(grid, once);
    at::Tensor twice = once.clone();
    fake_quantize_(grid, twice);
    EXPECT_TRUE(at::equal(once, twice)) << scale;
  }
}

TEST(Grids, ClippedEstimatorStopsTheSaturatedEnd) {
  // 7.5 rounds to 8, which is out of range; -8 is in range. With q4_0 it is the end opposite to m.
  at::Tensor w = at::zeros({1, 32});
  w[0][0] = 3.75;
  w[0][1] = -3.75;
  at::Tensor inside = at::empty(w.sizes(), at::kBool), x = w.clone();
  fake_quantize_(make_grid("int4_g32", at::kFloat), x, inside);
  EXPECT_FALSE(inside[0][0].item<bool>());
  EXPECT_TRUE(inside[0][1].item<bool>());
  EXPECT_EQ(inside.sum().item<int64_t>(), 31);
  x = w.clone();
  fake_quantize_(make_grid("q4_0", at::kFloat), x, inside);
  EXPECT_TRUE(inside[0][0].item<bool>());
  EXPECT_FALSE(inside[0][1].item<bool>());
  x = w.clone();
  fake_quantize_(make_grid("int4_channel", at::kFloat), x, inside);
  EXPECT_TRUE(inside.all().item<bool>());
}

TEST(OnGrid, LeavesOutWhatTheRuleLeavesOut) {
  const Grid q4 = make_grid("q4_0", at::kFloat), g32 = make_grid("int4_g32", at::kFloat);
  const std::string layer = "model.layers.0.";
  for (const char* name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
        "model.layers.0.mlp.gate.weight", "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.router_bias",
        "model.layers.0.mlp.shared_expert_gate.weight"})
    EXPECT_FALSE(is_quantizable(name)) << name;
  for (const char* name :
       {"self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight",
        "mlp.shared_expert.up_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"})
    EXPECT_TRUE(is_quantizable(layer + name)) << name;
  // An expert of width 48 in a model of 64: q4_0 takes gate and up, the int4 groups none.
  EXPECT_TRUE(on_grid(q4, layer + "mlp.experts.gate_up_proj", {8, 2, 48, 64}));
  EXPECT_FALSE(on_grid(q4, layer + "mlp.experts.down_proj", {8, 64, 48}));
  EXPECT_FALSE(on_grid(g32, layer + "mlp.experts.gate_up_proj", {8, 2, 48, 64}));
  EXPECT_TRUE(
      on_grid(make_grid("int4_channel", at::kFloat), layer + "mlp.experts.down_proj", {8, 64, 48}));
}

TEST(OnGrid, RefusesAModelThatItCannotTake) {
  nlohmann::json config = preset_config("qwen3_moe");
  config["moe_intermediate_size"] = 48;
  const ModelConfig odd = parse_model_config(config);
  check_grid_on_model(make_grid("q4_0", at::kFloat), "q4_0", odd);
  check_grid_on_model(make_grid("int4_channel", at::kFloat), "int4_channel", odd);
  EXPECT_THROW(check_grid_on_model(make_grid("int4_g32", at::kFloat), "int4_g32", odd),
               ConfigError);
  config = preset_config("gemma3_text");  // hidden size 64, width 192, 4 heads of 16
  const ModelConfig narrow = parse_model_config(config);
  check_grid_on_model(make_grid("int4_g32", at::kFloat), "int4_g32", narrow);
  EXPECT_THROW(check_grid_on_model(make_grid("int4_g128", at::kFloat), "int4_g128", narrow),
               ConfigError);
  EXPECT_THROW(make_grid("int5", at::kFloat), ConfigError);
}

TEST(OnGrid, GroupsMustNotStraddleRanks) {
  ModelConfig model =
      parse_model_config(preset_config("qwen3_moe"));  // heads 4 x 16, experts of 32
  MeshShape mesh;
  mesh.tp = 2;
  check_grid_on_mesh(make_grid("q4_0", at::kFloat), "q4_0", model, mesh);
  EXPECT_THROW(
      check_grid_on_mesh(make_grid("int4_channel", at::kFloat), "int4_channel", model, mesh),
      ConfigError);
  mesh = {};
  mesh.etp = 2;
  EXPECT_THROW(check_grid_on_mesh(make_grid("q4_0", at::kFloat), "q4_0", model, mesh), ConfigError);
  mesh.etp = 1;
  mesh.ep = 4;
  check_grid_on_mesh(make_grid("int4_channel", at::kFloat), "int4_channel", model, mesh);
}

}  // namespace
}  // namespace maniple

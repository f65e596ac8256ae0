// pack-quantized: words of the examples, and what is packed is read as the grid says.
#include "interop/compressed_tensors.h"

#include <gtest/gtest.h>

#include <map>

#include "core/errors.h"

namespace maniple {
namespace {

class Tensors : public HubTensors {
 public:
  void put(const std::string& name, const at::Tensor& t) {
    tensors[name] = t;
    entries[name] = {name, t.scalar_type(), t.sizes().vec()};
  }
  bool has(const std::string& name) const override { return tensors.count(name) > 0; }
  std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, t] : tensors) out.push_back(name);
    return out;
  }
  const SafetensorsEntry& entry(const std::string& name) const override { return entries.at(name); }
  at::Tensor read(const std::string& name) const override { return tensors.at(name); }
  const std::string& path() const override { return path_; }
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, SafetensorsEntry> entries;

 private:
  std::string path_ = "memory";
};

TEST(PackQuantized, HasTheWordsOfTheExample) {
  std::vector<float> x;
  for (int i = 0; i < 32; ++i) x.push_back(static_cast<float>(37 * i % 64 - 31) / 16);
  const PackedWeight parts =
      pack_weight(make_grid("int4_g32", at::kFloat), at::tensor(x).unsqueeze(0));
  EXPECT_TRUE(at::equal(
      parts.packed,
      at::tensor({417710993, -1299223478, 1547302868, -154885746}, at::kInt).unsqueeze(0)));
  EXPECT_EQ(parts.scale.item<float>(), 0.266666681f);
  EXPECT_EQ(parts.shape.scalar_type(), at::kLong);
}

TEST(PackQuantized, IsReadAsTheFakeQuantizedWeights) {
  for (const char* format : {"int4_channel", "int4_g32", "int4_g128"})
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const Grid grid = make_grid(format, type);
      const at::Tensor w = at::randn({5, 256}) * 0.02;
      at::Tensor fake = w.clone();
      fake_quantize_(grid, fake);
      const PackedWeight parts = pack_weight(grid, w);
      EXPECT_EQ(parts.scale.scalar_type(), type);
      auto stored = std::make_unique<Tensors>();
      stored->put("m.weight_packed", parts.packed);
      stored->put("m.weight_scale", parts.scale);
      stored->put("m.weight_shape", parts.shape);
      stored->put("n.weight", w);
      const CompressedFolder folder(std::move(stored));
      EXPECT_EQ(folder.names(), (std::vector<std::string>{"m.weight", "n.weight"}));
      EXPECT_TRUE(at::equal(folder.read("m.weight"), fake)) << format;
      EXPECT_TRUE(at::equal(folder.read("n.weight"), w));
    }
}

TEST(PackQuantized, RowsThatAreNoWholeWordsArePadded) {
  const at::Tensor w = at::randn({3, 13});
  const Grid grid = make_grid("int4_channel", at::kFloat);
  at::Tensor fake = w.clone();
  fake_quantize_(grid, fake);
  const PackedWeight parts = pack_weight(grid, w);
  EXPECT_EQ(parts.packed.size(1), 2);
  EXPECT_TRUE(at::equal(unpack_weight(parts), fake));
}

TEST(PackQuantized, PartsThatDoNotBelongTogetherAreRefused) {
  const PackedWeight good = pack_weight(make_grid("int4_g32", at::kFloat), at::randn({4, 64}));
  const auto refused = [&](const std::function<void(Tensors&)>& change) {
    auto stored = std::make_unique<Tensors>();
    stored->put("m.weight_packed", good.packed);
    stored->put("m.weight_scale", good.scale);
    stored->put("m.weight_shape", good.shape);
    change(*stored);
    EXPECT_THROW(CompressedFolder(std::move(stored)), DataError);
  };
  refused([](Tensors& t) { t.tensors.erase("m.weight_scale"); });
  refused([&](Tensors& t) { t.put("m.weight_shape", at::tensor({4, 72}, at::kLong)); });
  refused([&](Tensors& t) { t.put("m.weight_shape", at::tensor({5, 64}, at::kLong)); });
  refused([&](Tensors& t) { t.put("m.weight_scale", at::ones({4, 3})); });
  refused([&](Tensors& t) { t.put("m.weight_packed", good.packed.to(at::kLong)); });
  refused([&](Tensors& t) { t.put("m.weight_zero_point", good.packed); });
  refused([&](Tensors& t) { t.put("m.weight_g_idx", good.packed); });
}

TEST(PackQuantized, OtherConfigsAreRefused) {
  nlohmann::json good = quantization_config(make_grid("int4_g32", at::kFloat), {"lm_head"});
  check_quantization_config(good, "config.json");
  const auto refused = [&](const std::string& pointer, const nlohmann::json& value) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(pointer)] = value;
    EXPECT_THROW(check_quantization_config(bad, "config.json"), DataError) << pointer;
  };
  refused("/quant_method", "gptq");
  refused("/format", "int-quantized");
  refused("/kv_cache_scheme", {{"num_bits", 8}});
  refused("/config_groups", nlohmann::json::object());
  refused("/config_groups/group_0/weights/num_bits", 8);
  refused("/config_groups/group_0/weights/symmetric", false);
  refused("/config_groups/group_0/input_activations", {{"num_bits", 8}});
}

}  // namespace
}  // namespace maniple

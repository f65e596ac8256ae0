#include "interop/hf_names.h"
#include "interop/safetensors.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/errors.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

std::string golden_folder(const std::string& family) {
  return std::string(MANIPLE_TEST_DATA) + "/golden/" + family;
}

ModelConfig golden_model(const std::string& family) {
  return parse_model_config(
      nlohmann::json::parse(std::ifstream(golden_folder(family) + "/config.json")));
}

bool ends_with(const std::string& text, const std::string& tail) {
  return text.size() >= tail.size() &&
         text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

// The fill rule of spec/model.md 9.1: u of entry `index` of the hub tensor `name`.
double fill_u(const std::string& name, uint64_t index) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  uint64_t x = h + (index + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return static_cast<double>(x >> 40) / 8388608.0 - 1.0;
}

at::Tensor filled(const ModelConfig& model, const HubSlice& slice) {
  at::Tensor out = at::empty(slice.shape, at::kFloat);
  float* const data = out.data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); ++i) {
    const double u = fill_u(slice.name, i);
    double value = 0.2 * u;
    if (ends_with(slice.name, "norm.weight"))
      value = (model.norm_plus_one ? 0 : 1) + 0.1 * u;
    else if (ends_with(slice.name, ".gate.weight"))
      value = u;
    data[i] = static_cast<float>(value);
  }
  return out;
}

at::Tensor slice_of(at::Tensor tensor, const HubSlice& slice) {
  for (const int64_t i : slice.index) tensor = tensor.select(0, i);
  return tensor;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, EveryParameterIsTheFillOfItsHubTensors) {
  const ModelConfig model = golden_model(GetParam());
  const SafetensorsFolder folder(golden_folder(GetParam()));
  int64_t elements = 0;
  size_t tensors = 0;
  for (const NamedShape& parameter : model_parameters(model)) {
    const at::Tensor loaded = load_parameter(folder, model, parameter.name);
    EXPECT_EQ(loaded.sizes().vec(), parameter.shape) << parameter.name;
    elements += loaded.numel();
    for (const HubSlice& slice : hub_slices(model, parameter.name)) {
      EXPECT_TRUE(slice_of(loaded, slice).equal(filled(model, slice))) << slice.name;
      ++tensors;
    }
  }
  EXPECT_EQ(elements, num_parameters(model));
  EXPECT_EQ(tensors, folder.names().size());
  EXPECT_TRUE(unread_tensors(folder, model).empty());
}

INSTANTIATE_TEST_SUITE_P(Families, Golden,
                         testing::Values("qwen3_moe", "qwen2_moe", "mixtral", "gemma3_text"),
                         [](const auto& info) { return std::string(info.param); });

TEST(HfNames, HouseParametersCountAsTheConfigSays) {
  const ModelConfig house = parse_model_config(preset_config("house"));
  int64_t elements = 0, slices = 0;
  for (const NamedShape& parameter : model_parameters(house)) {
    int64_t numel = 1;
    for (const int64_t extent : parameter.shape) numel *= extent;
    elements += numel;
    slices += static_cast<int64_t>(hub_slices(house, parameter.name).size());
  }
  EXPECT_EQ(elements, num_parameters(house));
  // Embedding, final norm; a layer: 4 norms, 4 projections, 2 head norms, router and its bias,
  // 3 shared, 3 for each expert.
  EXPECT_EQ(slices, 2 + 4 * (4 + 4 + 2 + 2 + 3 + 3 * 16));
  EXPECT_THROW(hub_slices(house, "lm_head.weight"), InternalError);
  EXPECT_THROW(hub_slices(house, "model.layers.4.input_layernorm.weight"), InternalError);
  EXPECT_THROW(hub_slices(house, "model.layers.00.input_layernorm.weight"), InternalError);
}

// A copy of a golden folder that a test may change before it is written.
class EditedFolder : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ = fs::path(testing::TempDir()) / fmt::format("hf_names.{}.{}", info->name(), ::getpid());
    fs::create_directories(path_);
    const SafetensorsFolder golden(golden_folder("mixtral"));
    for (const std::string& name : golden.names()) tensors_[name] = golden.read(name);
  }
  void TearDown() override { fs::remove_all(path_); }

  SafetensorsFolder written() const {
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, tensor] : tensors_)
      entries.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
    SafetensorsWriter writer((path_ / "model.safetensors").string(), entries);
    for (const auto& [name, tensor] : tensors_) writer.write(name, tensor);
    writer.finish();
    return SafetensorsFolder(path_.string());
  }

  void expect_refused(const std::string& parameter, const std::string& hub_name) const {
    try {
      load_parameter(written(), model_, parameter);
      ADD_FAILURE() << hub_name << " was accepted";
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(hub_name), std::string::npos) << error.what();
    }
  }

  const ModelConfig model_ = golden_model("mixtral");
  std::map<std::string, at::Tensor> tensors_;
  fs::path path_;
};

TEST_F(EditedFolder, TheMergedLayoutOfTransformers5IsTheSameModel) {
  const SafetensorsFolder golden(golden_folder("mixtral"));
  tensors_.clear();
  for (const NamedShape& parameter : model_parameters(model_)) {
    at::Tensor tensor = load_parameter(golden, model_, parameter.name);
    if (ends_with(parameter.name, "gate_up_proj")) tensor = tensor.flatten(1, 2);
    tensors_[parameter.name] = tensor;
  }
  const SafetensorsFolder merged = written();
  EXPECT_FALSE(merged.has("model.layers.0.block_sparse_moe.gate.weight"));
  for (const NamedShape& parameter : model_parameters(model_))
    EXPECT_TRUE(load_parameter(merged, model_, parameter.name)
                    .equal(load_parameter(golden, model_, parameter.name)))
        << parameter.name;
  EXPECT_TRUE(unread_tensors(merged, model_).empty());

  tensors_["model.layers.1.mlp.experts.gate_up_proj"] = at::zeros({4, 2, 24, 32});
  expect_refused("model.layers.1.mlp.experts.gate_up_proj",
                 "model.layers.1.mlp.experts.gate_up_proj has shape [4, 2, 24, 32]");
}

TEST_F(EditedFolder, AMissingExpertIsNamed) {
  const std::string name = "model.layers.1.block_sparse_moe.experts.3.w3.weight";
  tensors_.erase(name);
  expect_refused("model.layers.1.mlp.experts.gate_up_proj", name + " is missing");
}

TEST_F(EditedFolder, AWrongShapeIsNamed) {
  const std::string name = "model.layers.0.block_sparse_moe.experts.2.w2.weight";
  tensors_[name] = tensors_[name].t();
  expect_refused("model.layers.0.mlp.experts.down_proj", name + " has shape [24, 32]");
}

TEST_F(EditedFolder, IntegerAndMixedTypesAreNamed) {
  tensors_["model.norm.weight"] = at::ones({32}, at::kLong);
  expect_refused("model.norm.weight", "model.norm.weight is of type Long");
  const std::string name = "model.layers.0.block_sparse_moe.experts.1.w1.weight";
  tensors_[name] = tensors_[name].to(at::kBFloat16);
  expect_refused("model.layers.0.mlp.experts.gate_up_proj", name);
}

TEST_F(EditedFolder, TensorsThatNothingReadsAreListed) {
  tensors_["model.layers.2.input_layernorm.weight"] = at::ones({32});
  tensors_["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({4});
  EXPECT_EQ(unread_tensors(written(), model_),
            std::vector<std::string>{"model.layers.2.input_layernorm.weight"});
}

}  // namespace
}  // namespace maniple

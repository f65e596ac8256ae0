// Models come and go: import and export give back the same bytes, and every format the same model.
#include "trainer/export.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/files.h"
#include "interop/hub_model.h"
#include "interop/safetensors.h"
#include "trainer/inference.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

class Export : public testing::TestWithParam<std::string> {
 protected:
  Export() : folder_(fs::temp_directory_path() / fmt::format("export-{}", ::getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Export() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ / name; }
  static std::string golden(const std::string& family) {
    return MANIPLE_TEST_DATA "/golden/" + family;
  }

  // As a hub folder of bf16 shards, with a tokenizer, by another order of tensors than ours.
  void make_sharded(const std::string& from, const std::string& to) {
    fs::create_directories(to);
    fs::copy_file(from + "/config.json", to + "/config.json");
    write_file_atomic(to + "/tokenizer.json", "{\"version\": \"1.0\"}\n");
    const SafetensorsFolder source(from);
    nlohmann::ordered_json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", {}}};
    for (int shard = 0; shard < 2; ++shard) {
      const std::string file = fmt::format("model-{:05}-of-00002.safetensors", shard + 1);
      std::vector<SafetensorsEntry> entries;
      int64_t i = 0;
      for (const std::string& name : source.names())
        if (i++ % 2 == shard) entries.push_back({name, at::kBFloat16, source.entry(name).shape});
      SafetensorsWriter writer(to + "/" + file, entries);
      for (const SafetensorsEntry& entry : entries) {
        writer.write(entry.name, source.read(entry.name).to(at::kBFloat16));
        index["weight_map"][entry.name] = file;
      }
      writer.finish();
    }
    write_file_atomic(to + "/model.safetensors.index.json", index.dump(2));
  }

  void expect_same_files(const std::string& a, const std::string& b,
                         const std::vector<std::string>& names) {
    for (const std::string& name : names)
      EXPECT_EQ(read_file(a + "/" + name), read_file(b + "/" + name)) << name;
  }

 private:
  fs::path folder_;
};

TEST_P(Export, ImportAndExportGiveTheSameBytes) {
  const std::string from = golden(GetParam());
  import_model(from, path("run"));
  export_model({.model = path("run"),
                .format = "hf",
                .quant = "",
                .out = path("hf"),
                .fake_quant_out = "",
                .verify = true});
  expect_same_files(from, path("hf"), {"config.json", "model.safetensors", "config_v5.json"});
  export_model({.model = from,
                .format = "hf",
                .quant = "",
                .out = path("direct"),
                .fake_quant_out = "",
                .verify = true});
  expect_same_files(from, path("direct"), {"config.json", "model.safetensors"});
}

TEST_P(Export, ShardsAndTokenizerComeBack) {
  make_sharded(golden(GetParam()), path("hub"));
  import_model(path("hub"), path("run"));
  export_model({.model = path("run"),
                .format = "hf",
                .quant = "",
                .out = path("hf"),
                .fake_quant_out = "",
                .verify = true});
  expect_same_files(path("hub"), path("hf"),
                    {"config.json", "tokenizer.json", "model.safetensors.index.json",
                     "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"});
}

TEST_P(Export, EveryFormatGivesTheSameModel) {
  // Verification compares tensors and logits with the trainer's own fake quantisation.
  for (const char* quant : {"", "q4_0", "q8_0", "bf16", "f16"}) {
    if (GetParam() == "qwen2_moe") break;  // has a dense layer, which GGUF cannot say
    export_model({golden(GetParam()), "gguf", quant, path(fmt::format("x{}.gguf", quant)), false,
                  path("fake.safetensors"), true});
  }
  for (const char* quant : {"", "bf16", "f16"})
    export_model(
        {golden(GetParam()), "hf", quant, path(fmt::format("hf{}", quant)), false, "", true});
  export_model({golden(GetParam()), "compressed-tensors", "int4_channel", path("ct"), false,
                path("ct.safetensors"), true});
  EXPECT_TRUE(fs::exists(path("ct.safetensors")));
}

TEST_P(Export, AQuantizedModelIsImportedAgain) {
  export_model(
      {golden(GetParam()), "compressed-tensors", "int4_channel", path("ct"), false, "", false});
  import_model(path("ct"), path("run"));
  InferenceModel direct(path("ct"), "fp32", "cpu"), imported(path("run"), "fp32", "cpu");
  const at::Tensor ids = at::arange(16, at::TensorOptions(at::kLong)).view({1, 16});
  EXPECT_TRUE(at::equal(direct.logits(ids), imported.logits(ids)));
}

INSTANTIATE_TEST_SUITE_P(Families, Export,
                         testing::Values("qwen3_moe", "qwen2_moe", "mixtral", "gemma3_text"),
                         [](const auto& info) { return info.param; });

TEST_F(Export, RefusalsNameTheReason) {
  const auto refused = [&](const ExportRequest& request, ExitCode code,
                           const std::string& fragment) {
    try {
      export_model(request);
      ADD_FAILURE() << "accepted: " << fragment;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  };
  const std::string qwen = golden("qwen3_moe"), ct = "compressed-tensors";
  refused({qwen, "gguf", "q4_0", path("x.bin")}, ExitCode::kUsage, "*.gguf");
  refused({qwen, "gguf", "int4_g32", path("x.gguf")}, ExitCode::kUsage, "q4_0, q8_0, bf16 or f16");
  refused({qwen, ct, "q4_0", path("x")}, ExitCode::kUsage, "int4_g32, int4_g128 or int4_channel");
  refused({qwen, ct, "", path("x")}, ExitCode::kUsage, "--quant");
  refused({qwen, "hf", "q8_0", path("x")}, ExitCode::kUsage, "bf16 or f16");
  refused({qwen, ct, "int4_g32", path("x")}, ExitCode::kConfig,
          "multiples of 32");  // experts of 16
  refused({golden("gemma3_text"), ct, "int4_g128", path("x")}, ExitCode::kConfig, "int4_channel");
  refused({golden("qwen2_moe"), "gguf", "", path("x.gguf")}, ExitCode::kConfig, "layer 0 is dense");
  refused({path("absent"), "gguf", "", path("x.gguf")}, ExitCode::kNoInput, "absent");
  fs::create_directories(path("full/folder"));
  refused({qwen, "hf", "", path("full")}, ExitCode::kIo, "exists");
  fs::create_directories(path("d.gguf"));
  refused({qwen, "gguf", "", path("d.gguf")}, ExitCode::kIo, "folder");
  EXPECT_THROW(import_model(path("absent"), path("run")), Error);
  EXPECT_FALSE(fs::exists(path("x.gguf")));
}

}  // namespace
}  // namespace maniple

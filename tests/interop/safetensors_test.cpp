#include "interop/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/files.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        fs::path(testing::TempDir()) / fmt::format("safetensors.{}.{}", info->name(), ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // A file of this header with `data_size` bytes of data.
  std::string write_raw(const std::string& header, size_t data_size) const {
    const uint64_t length = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return write_bytes(bytes + header + std::string(data_size, '\1'));
  }
  std::string write_bytes(const std::string& bytes) const {
    std::ofstream(path("raw.safetensors"), std::ios::binary) << bytes;
    return path("raw.safetensors");
  }

  fs::path folder_;
};

TEST_F(Safetensors, WhatIsWrittenComesBackBitForBit) {
  const std::map<std::string, at::Tensor> tensors = {
      {"b.double", at::randn({3, 5}, at::kDouble)}, {"a.float", at::randn({2, 3, 4})},
      {"bf16", at::randn({7}).to(at::kBFloat16)},   {"long", at::arange(6, at::kLong).view({2, 3})},
      {"scalar", at::ones({}, at::kFloat)},         {"empty", at::empty({0, 4})},
      {"transposed", at::randn({4, 2}).t()},
  };
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors)
    entries.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  SafetensorsWriter writer(path("x.safetensors"), entries);
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor);
  EXPECT_FALSE(fs::exists(path("x.safetensors"))) << "nothing appears before finish";
  writer.finish();

  const SafetensorsFolder read(path("x.safetensors"));
  EXPECT_EQ(read.names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.entry(name).shape, tensor.sizes().vec()) << name;
    EXPECT_TRUE(read.read(name).dtype() == tensor.dtype() && read.read(name).equal(tensor)) << name;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(Safetensors, AnUnfinishedFileLeavesNothing) {
  { SafetensorsWriter writer(path("x.safetensors"), {{"a", at::kFloat, {2}}}); }
  EXPECT_TRUE(fs::is_empty(folder_));
  EXPECT_THROW(SafetensorsWriter(path("no/x.safetensors"), std::vector<SafetensorsEntry>{}), IoError);
}

TEST_F(Safetensors, GoldenFilesAreRewrittenByteForByte) {
  for (const char* family : {"qwen3_moe", "qwen2_moe", "mixtral", "gemma3_text"}) {
    for (const char* file : {"model.safetensors", "golden.safetensors"}) {
      const std::string source = fmt::format("{}/golden/{}/{}", MANIPLE_TEST_DATA, family, file);
      const SafetensorsFolder golden(source);
      std::vector<SafetensorsEntry> entries;
      for (const std::string& name : golden.names()) entries.push_back(golden.entry(name));
      SafetensorsWriter writer(path(file), entries);
      for (const SafetensorsEntry& entry : entries)
        writer.write(entry.name, golden.read(entry.name));
      writer.finish();
      EXPECT_TRUE(read_file(path(file)) == read_file(source)) << source;
    }
  }
}

TEST_F(Safetensors, HostileFilesAreRefused) {
  const std::string ok = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_NO_THROW(SafetensorsFile(write_raw("{" + ok + "}", 8)));
  EXPECT_NO_THROW(SafetensorsFile(write_raw("{" + ok + "}   ", 8))) << "padding is legal";

  const struct {
    const char* what;
    std::string header;
    size_t data;
  } cases[] = {
      {"empty header", "", 0},
      {"not JSON", "{\"a\":", 8},
      {"garbage behind the JSON", "{" + ok + "}x", 8},
      {"not an object", "[1]", 0},
      {"invalid UTF-8", "{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8},
      {"duplicate name", "{" + ok + "," + ok + "}", 8},
      {"deep nesting", "{\"a\":" + std::string(10000, '[') + std::string(10000, ']') + "}", 0},
      {"entry is no object", R"({"a":3})", 0},
      {"missing shape", R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8},
      {"unknown field", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8},
      {"unknown dtype", R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8},
      {"dtype is no string", R"({"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8},
      {"negative extent", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8},
      {"fractional extent", R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8},
      {"shape overflows",
       R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0},
      {"extent beyond int64",
       R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", 8},
      {"shape and offsets disagree", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})",
       8},
      {"dtype and offsets disagree", R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[0,8]}})",
       8},
      {"one offset", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8]}})", 8},
      {"reversed offsets", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8},
      {"negative offset", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8},
      {"offsets beyond the end", "{" + ok + "}", 4},
      {"data nobody describes", "{" + ok + "}", 12},
      {"hole in front", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12},
      {"overlap", "{" + ok + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12},
      {"same bytes twice", "{" + ok + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
       8},
      {"metadata is no map of strings", "{\"__metadata__\":{\"format\":1}," + ok + "}", 8},
  };
  for (const auto& c : cases)
    EXPECT_THROW(SafetensorsFile(write_raw(c.header, c.data)), DataError) << c.what;

  EXPECT_THROW(SafetensorsFile(write_bytes("")), DataError);
  EXPECT_THROW(SafetensorsFile(write_bytes("1234567")), DataError);
  EXPECT_THROW(SafetensorsFile(write_bytes(std::string("\x09\0\0\0\0\0\0\0{}", 10))), DataError);
  EXPECT_THROW(SafetensorsFile(write_bytes(std::string(8, '\xff') + "{}")), DataError);
  EXPECT_THROW(SafetensorsFile(path("absent")), NoInputError);
  EXPECT_THROW(SafetensorsFile(folder_.string()), IoError);
}

// Whatever bytes change in a header, the file is refused or every tensor can be read.
TEST_F(Safetensors, FlippedHeaderBytesNeverReachBeyondTheFile) {
  const std::string source =
      read_file(std::string(MANIPLE_TEST_DATA) + "/golden/mixtral/model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, source.data(), 8);
  int refused = 0;
  for (size_t i = 0; i < 8 + 600; ++i) {
    std::string bytes = source;
    bytes[i] ^= static_cast<char>(1 << (i % 7));
    try {
      const SafetensorsFile file(write_bytes(bytes));
      for (const auto& [name, entry] : file.entries()) file.read(name);
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(Safetensors, AFolderOfShardsReadsAsOne) {
  for (const char* name : {"a", "b"}) {
    SafetensorsWriter writer(path(fmt::format("model-{}.safetensors", name)),
                             {{name, at::kFloat, {2}}});
    writer.write(name, at::full({2}, name[0], at::kFloat));
    writer.finish();
  }
  const auto index = [&](const std::string& text) {
    std::ofstream(path("model.safetensors.index.json")) << text;
    return SafetensorsFolder(folder_.string());
  };
  {
    const SafetensorsFolder folder = index(
        R"({"metadata":{"total_size":16},"weight_map":{"a":"model-a.safetensors","b":"model-b.safetensors"}})");
    EXPECT_EQ(folder.names(), (std::vector<std::string>{"a", "b"}));
    EXPECT_TRUE(folder.read("b").equal(at::full({2}, 'b', at::kFloat)));
    EXPECT_THROW(folder.read("c"), DataError);
  }
  EXPECT_THROW(index(R"({"weight_map":{"a":"model-b.safetensors"}})"), DataError);
  EXPECT_THROW(index(R"({"weight_map":{"a":"model-c.safetensors"}})"), DataError);
  EXPECT_THROW(index(R"({"weight_map":{"a":"../model-a.safetensors"}})"), DataError);
  EXPECT_THROW(index(R"({"weight_map":{"a":1}})"), DataError);
  EXPECT_THROW(index(R"({"weight_map":[]})"), DataError);
  EXPECT_THROW(index("{"), DataError);
  fs::remove(path("model.safetensors.index.json"));
  EXPECT_THROW(SafetensorsFolder(folder_.string()), NoInputError);
}

}  // namespace
}  // namespace maniple

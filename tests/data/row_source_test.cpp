#include "data/row_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/errors.h"
#include "message_of.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

class RowSourceTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              ("maniple_data_" + std::to_string(::getpid()) + "_" + test->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& bytes) {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }

  fs::path folder_;
};

DataConfig config(std::vector<SourceConfig> sources, double validation = 0) {
  DataConfig data;
  data.sources = std::move(sources);
  data.validation = validation;
  return data;
}

DataConfig text(const std::string& path, double validation = 0) {
  return config({{path, "text", 1}}, validation);
}

// Text without repetition: each row's input names the row.
std::string numbered(int64_t rows, char letter) {
  std::string out;
  for (int64_t i = 0; i < rows; ++i) out += fmt::format("{}{:06}\n", letter, i);
  return out;
}

std::string string_of(const std::vector<int32_t>& ids) { return {ids.begin(), ids.end()}; }

std::vector<Row> natural_rows(const RowSource& source) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < source.num_rows(Split::kTrain); ++i)
    rows.push_back(source.row(Split::kTrain, static_cast<uint64_t>(i)));
  return rows;
}

// --- text --------------------------------------------------------------------------------------

TEST_F(RowSourceTest, TextOfAFolderIsSortedAndHiddenAndEmptyFilesAreLeftOut) {
  write("b/x.txt", "cd");
  write("a.txt", "ab");
  write("b.txt", "\xff");
  write(".hidden", "no");
  write(".git/config", "no");
  write("b/.cache", "no");
  write("empty.txt", "");
  // Bytewise order of relative paths: "a.txt", "b.txt", "b/x.txt" ('.' < '/').
  const auto source = open_row_source(text(folder_.string()), 7, 257, 1);
  EXPECT_EQ(source->num_tokens(), 8);
  EXPECT_EQ(source->num_rows(Split::kTrain), 1);
  EXPECT_EQ(source->bytes_per_token(), 1);
  const Row row = source->row(Split::kTrain, 0);
  EXPECT_EQ(row.input, (std::vector<int32_t>{'a', 'b', 256, 255, 256, 'c', 'd'}));
  EXPECT_EQ(row.target, (std::vector<int32_t>{'b', 256, -1, 256, -1, 'd', 256}));
  EXPECT_EQ(row.position, (std::vector<int32_t>{0, 1, 2, 0, 1, 0, 1}));
  EXPECT_EQ(row.document, (std::vector<int32_t>{0, 0, 0, 1, 1, 2, 2}));
}

TEST_F(RowSourceTest, ARowThatBeginsInsideADocumentStartsAtPositionAndDocumentZero) {
  write("a", "abcdef");  // 7 ids
  write("b", "ghij");    // 5 ids
  const auto source = open_row_source(text(folder_.string()), 4, 257, 1);
  ASSERT_EQ(source->num_rows(Split::kTrain), 2);
  std::map<int32_t, Row> by_first;
  for (const Row& row : natural_rows(*source)) by_first[row.input[0]] = row;
  const Row& second = by_first.at('e');
  EXPECT_EQ(second.input, (std::vector<int32_t>{'e', 'f', 256, 'g'}));
  EXPECT_EQ(second.target, (std::vector<int32_t>{'f', 256, -1, 'h'}));
  EXPECT_EQ(second.position, (std::vector<int32_t>{0, 1, 2, 0}));
  EXPECT_EQ(second.document, (std::vector<int32_t>{0, 0, 0, 1}));
  EXPECT_EQ(by_first.at('a').target, (std::vector<int32_t>{'b', 'c', 'd', 'e'}));
}

TEST_F(RowSourceTest, LargeMappedFileEqualsItsBytes) {
  const std::string bytes = numbered(1 << 18, 'x');  // 2 MiB
  const auto source = open_row_source(text(write("big.txt", bytes)), 1000, 300, 3);
  std::set<std::string> rows;
  for (int64_t i = 0; i < 100; ++i) {
    const Row row = source->row(Split::kTrain, static_cast<uint64_t>(i));
    rows.insert(string_of(row.input));
    EXPECT_NE(bytes.find(string_of(row.input)), std::string::npos);
  }
  EXPECT_EQ(rows.size(), 100u);
}

// --- hashes ------------------------------------------------------------------------------------

TEST_F(RowSourceTest, ALargeFileThatChangesIsNotReadAnyMore) {
  const std::string bytes = numbered(1 << 18, 'x');  // 2 MiB
  const std::string path = write("big.txt", bytes);
  const auto source = open_row_source(text(path), 1000, 300, 3);
  const auto first = [&](int64_t offset) {  // which row holds the byte
    for (uint64_t i = 0;; ++i)
      if (source->sample_of(Split::kTrain, i).row == offset / 1000) return i;
  };
  const uint64_t damaged = first(1 << 20), sound = first(1 << 19);
  const Row before = source->row(Split::kTrain, damaged);
  std::string other = bytes;
  other[(1 << 20) + 5] ^= 1;
  write("big.txt", other);
  const std::string message = message_of<DataError>([&] { source->row(Split::kTrain, damaged); });
  EXPECT_NE(message.find(path + ": bytes 1048576 to 1114111 have changed"), std::string::npos) << message;
  source->row(Split::kTrain, sound);
  write("big.txt", bytes.substr(0, (1 << 20) + 100));
  message_of<DataError>([&] { source->row(Split::kTrain, damaged); });
  fs::remove(path);
  EXPECT_THROW(source->row(Split::kTrain, sound), NoInputError);
  write("big.txt", bytes);
  EXPECT_EQ(source->row(Split::kTrain, damaged).input, before.input);
}

TEST_F(RowSourceTest, ContentsThatDoNotHaveTheHashOfTheConfigAreRefused) {
  const std::string path = write("t", numbered(100, 'a'));
  DataConfig data = text(path);
  data.sources[0].hash = fmt::format("{:016x}", open_row_source(data, 8, 257, 1)->sources()[0].content);
  open_row_source(data, 8, 257, 1);
  write("t", numbered(100, 'b'));
  const std::string message = message_of<DataError>([&] { open_row_source(data, 8, 257, 1); });
  EXPECT_NE(message.find(data.sources[0].hash), std::string::npos) << message;
  EXPECT_NE(message.find(path), std::string::npos) << message;
}

// --- order -------------------------------------------------------------------------------------

TEST_F(RowSourceTest, EachEpochVisitsEveryTrainingRowOnceInAnotherOrder) {
  const auto source = open_row_source(text(write("t", numbered(1001, 'a')), 0.01), 8, 257, 7);
  const auto n = static_cast<uint64_t>(source->num_rows(Split::kTrain));
  ASSERT_EQ(n, 990u);  // 1001 rows, ceil(10.01) = 11 held out
  std::vector<std::string> first, second;
  for (uint64_t i = 0; i < n; ++i) {
    first.push_back(string_of(source->row(Split::kTrain, i).input));
    second.push_back(string_of(source->row(Split::kTrain, n + i).input));
  }
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, second);
  EXPECT_EQ(std::set<std::string>(first.begin(), first.end()).size(), n);
}

TEST_F(RowSourceTest, ValidationIsTheTailOfEachSourceAndDisjointFromTraining) {
  const std::string a = write("a", numbered(300, 'a')), b = write("b", numbered(100, 'b'));
  const auto source = open_row_source(config({{a, "text", 1}, {b, "text", 5}}, 0.1), 8, 257, 1);
  ASSERT_EQ(source->num_rows(Split::kTrain), 360);
  ASSERT_EQ(source->num_rows(Split::kValidation), 40);
  std::set<std::string> train, validation;
  for (uint64_t i = 0; i < 5000; ++i) train.insert(string_of(source->row(Split::kTrain, i).input));
  std::string last_a, last_b;
  int of_b = 0;
  for (uint64_t i = 0; i < 40; ++i) {
    const std::string row = string_of(source->row(Split::kValidation, i).input);
    validation.insert(row);
    std::string& last = row[0] == 'a' ? last_a : last_b;
    of_b += row[0] == 'b';
    EXPECT_LT(last, row);  // natural order within a source
    last = row;
    if (i == 19) {
      EXPECT_EQ(of_b, 5);  // interleaved in proportion
    }
  }
  EXPECT_EQ(train.size(), 360u);
  EXPECT_EQ(validation.size(), 40u);
  EXPECT_EQ(*validation.begin(), "a000270\n");
  EXPECT_EQ(*validation.rbegin(), "b000099\n");
  for (const std::string& row : validation) EXPECT_FALSE(train.contains(row));
  EXPECT_THROW(source->row(Split::kValidation, 40), InternalError);
}

TEST_F(RowSourceTest, SmallSharesStillHoldOutOneRowAndNeverTheLastTrainingRow) {
  const std::string two = write("two", numbered(2, 'a')), one = write("one", numbered(1, 'a'));
  EXPECT_EQ(open_row_source(text(two, 1e-9), 8, 257, 1)->num_rows(Split::kValidation), 1);
  EXPECT_EQ(open_row_source(text(two, 0.99), 8, 257, 1)->num_rows(Split::kTrain), 1);
  EXPECT_EQ(open_row_source(text(two, 0), 8, 257, 1)->num_rows(Split::kValidation), 0);
  EXPECT_EQ(open_row_source(text(one, 0.5), 8, 257, 1)->num_rows(Split::kTrain), 1);
}

TEST_F(RowSourceTest, BlendFollowsTheWeightsAndEachSourceHasItsOwnEpochs) {
  const std::string a = write("a", numbered(50, 'a')), b = write("b", numbered(70, 'b'));
  const auto source = open_row_source(config({{a, "text", 3}, {b, "text", 1}}), 8, 257, 1);
  std::map<std::string, int> seen;
  for (uint64_t i = 0; i < 400; ++i) ++seen[string_of(source->row(Split::kTrain, i).input)];
  int of_a = 0, of_b = 0;
  for (const auto& [row, count] : seen) {
    (row[0] == 'a' ? of_a : of_b) += count;
    EXPECT_EQ(count, row[0] == 'a' ? 6 : count);
    EXPECT_LE(count, row[0] == 'a' ? 6 : 2);
  }
  EXPECT_EQ(of_a, 300);
  EXPECT_EQ(of_b, 100);
}

TEST_F(RowSourceTest, OrderAndFingerprintDependOnSeedContentAndShape) {
  const std::string a = write("a", numbered(100, 'a')), b = write("b", numbered(100, 'b'));
  const auto order = [](const RowSource& source) {
    std::string all;
    for (const Row& row : natural_rows(source)) all += string_of(row.input);
    return all;
  };
  const auto base = open_row_source(text(a), 8, 257, 1);
  const auto again = open_row_source(text(a), 8, 999, 1);
  EXPECT_EQ(order(*base), order(*again));
  EXPECT_EQ(base->fingerprint(), again->fingerprint());
  EXPECT_NE(order(*base), order(*open_row_source(text(a), 8, 257, 2)));
  const std::set<uint64_t> prints = {
      base->fingerprint(),
      open_row_source(text(a), 8, 257, 2)->fingerprint(),
      open_row_source(text(b), 8, 257, 1)->fingerprint(),
      open_row_source(text(a), 16, 257, 1)->fingerprint(),
      open_row_source(text(a, 0.1), 8, 257, 1)->fingerprint(),
      open_row_source(config({{a, "text", 1}, {b, "text", 1}}), 8, 257, 1)->fingerprint(),
      open_row_source(config({{b, "text", 1}, {a, "text", 1}}), 8, 257, 1)->fingerprint(),
      open_row_source(config({{a, "text", 1}, {b, "text", 2}}), 8, 257, 1)->fingerprint()};
  EXPECT_EQ(prints.size(), 8u);
}

// --- refused -----------------------------------------------------------------------------------

TEST_F(RowSourceTest, BadConfigsAndInputsAreRefusedWithTheirReason) {
  const std::string good = write("t", numbered(10, 'a'));
  const auto open = [](DataConfig data, int64_t seq_len = 8, int64_t vocab_size = 257) {
    return [=] { open_row_source(data, seq_len, vocab_size, 1); };
  };
  message_of<ConfigError>(open(config({})));
  message_of<ConfigError>(open(text(good), 0));
  message_of<ConfigError>(open(text(good, 1)));
  message_of<ConfigError>(open(text(good, -0.1)));
  message_of<ConfigError>(open(config({{good, "text", 0}})));
  message_of<ConfigError>(open(config({{good, "hdf5", 1}})));
  EXPECT_NE(message_of<ConfigError>(open(text(good), 8, 256)).find("257"), std::string::npos);
  const std::string absent = (folder_ / "absent").string();
  EXPECT_NE(message_of<NoInputError>(open(text(absent))).find(absent), std::string::npos);
  message_of<NoInputError>(open(config({{absent, "megatron", 1}})));
  message_of<DataError>(open(text(write("empty", ""))));
  fs::create_directories(folder_ / "none");
  message_of<DataError>(open(text((folder_ / "none").string())));
  message_of<DataError>(open(text(good), 81));  // 81 tokens, 82 needed
  EXPECT_EQ(open_row_source(text(good), 80, 257, 1)->num_rows(Split::kTrain), 1);
}

// --- megatron ----------------------------------------------------------------------------------

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

struct Megatron {
  std::string idx, bin;
};

template <typename T>
Megatron megatron(int code, const std::vector<std::vector<int32_t>>& documents) {
  Megatron out;
  out.idx = std::string("MMIDIDX\0\0", 9);
  put<uint64_t>(out.idx, 1);
  put<uint8_t>(out.idx, static_cast<uint8_t>(code));
  put<uint64_t>(out.idx, documents.size());
  put<uint64_t>(out.idx, documents.size() + 1);
  for (const auto& document : documents) put<int32_t>(out.idx, static_cast<int>(document.size()));
  for (const auto& document : documents) {
    put<int64_t>(out.idx, static_cast<int64_t>(out.bin.size()));
    for (int32_t id : document) put<T>(out.bin, static_cast<T>(id));
  }
  for (size_t i = 0; i <= documents.size(); ++i) put<int64_t>(out.idx, static_cast<int64_t>(i));
  return out;
}

const std::vector<std::vector<int32_t>> kDocuments = {{5, 6, 7}, {}, {100}, {1, 2, 3, 4, 9, 0, 11}};

TEST_F(RowSourceTest, MegatronTokensAreEqualForEveryDtype) {
  const Megatron files[] = {megatron<uint8_t>(1, kDocuments), megatron<int8_t>(2, kDocuments),
                            megatron<int16_t>(3, kDocuments), megatron<int32_t>(4, kDocuments),
                            megatron<int64_t>(5, kDocuments), megatron<uint16_t>(8, kDocuments)};
  for (const Megatron& file : files) {
    write("m.idx", file.idx);
    write("m.bin", file.bin);
    const auto source =
        open_row_source(config({{(folder_ / "m").string(), "megatron", 1}}), 10, 101, 1);
    EXPECT_EQ(source->num_tokens(), 11);
    EXPECT_EQ(source->bytes_per_token(), 0);
    const Row row = source->row(Split::kTrain, 0);
    EXPECT_EQ(row.input, (std::vector<int32_t>{5, 6, 7, 100, 1, 2, 3, 4, 9, 0}));
    EXPECT_EQ(row.target, (std::vector<int32_t>{6, 7, -1, -1, 2, 3, 4, 9, 0, 11}));
    EXPECT_EQ(row.position, (std::vector<int32_t>{0, 1, 2, 0, 0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(row.document, (std::vector<int32_t>{0, 0, 0, 1, 2, 2, 2, 2, 2, 2}));
  }
}

TEST_F(RowSourceTest, CorruptMegatronFilesAreRefused) {
  const Megatron good = megatron<uint16_t>(8, kDocuments);
  const std::string path = (folder_ / "m").string();
  const auto open = [&](const Megatron& file, int64_t vocab_size = 101) {
    write("m.idx", file.idx);
    write("m.bin", file.bin);
    return open_row_source(config({{path, "megatron", 1}}), 10, vocab_size, 1);
  };
  ASSERT_NO_THROW(open(good));
  const int64_t lengths = 34, pointers = lengths + 4 * 4, marks = pointers + 8 * 4;
  const auto with = [&](int64_t at, auto value) {
    Megatron file = good;
    std::memcpy(file.idx.data() + at, &value, sizeof value);
    return file;
  };
  std::vector<std::pair<const char*, Megatron>> corrupt = {
      {"magic", with(3, 'X')},
      {"version", with(9, uint64_t{2})},
      {"dtype", with(17, uint8_t{7})},
      {"dtype", with(17, uint8_t{0})},
      {"need", with(18, uint64_t{5})},
      {"need", with(18, uint64_t{0})},
      {"need", with(18, uint64_t{1} << 61)},
      {"need", with(26, ~uint64_t{0} / 8)},
      {"negative", with(lengths, int32_t{-3})},
      {"must follow", with(lengths, int32_t{4})},
      {"ends at byte", with(lengths + 12, int32_t{8})},
      {"sequences end", with(lengths + 12, int32_t{6})},
      {"must follow", with(pointers + 16, int64_t{8})},
      {"must follow", with(pointers, int64_t{-6})},
      {"mark 0 is 1", with(marks, int64_t{1})},
      {"must not fall", with(marks + 16, int64_t{0})},
      {"last document mark", with(marks + 32, int64_t{3})},
      {"mark 4 is 5", with(marks + 32, int64_t{5})},
      {"sequences end", {good.idx, good.bin + std::string(2, '\0')}},
      {"ends at byte", {good.idx, good.bin.substr(0, good.bin.size() - 1)}},
      {"need", {good.idx + '\0', good.bin}},
      {"need", {good.idx.substr(0, good.idx.size() - 1), good.bin}},
      {"header", {good.idx.substr(0, 33), good.bin}},
      {"header", {"", good.bin}},
      {"ends at byte", {good.idx, ""}},
  };
  for (const auto& [reason, file] : corrupt) {
    const std::string message = message_of<DataError>([&] { open(file); });
    EXPECT_NE(message.find(reason), std::string::npos) << message;
    EXPECT_NE(message.find(path), std::string::npos) << message;
  }
  message_of<DataError>([&] { open(good, 100); });  // token 100
  message_of<DataError>([&] { open(megatron<int16_t>(3, {{1, 2, -1, 4, 5, 6, 7, 8, 9, 1, 2}})); });
  message_of<DataError>([&] { open(megatron<int16_t>(3, {{1, 2, 3}})); });  // no row
  // Every prefix of the index is refused, and no byte of its header is without meaning.
  for (size_t size = 0; size < good.idx.size(); ++size)
    EXPECT_THROW(open({good.idx.substr(0, size), good.bin}), DataError);
  for (size_t at = 0; at < good.idx.size(); ++at) {
    Megatron file = good;
    file.idx[at] = static_cast<char>(file.idx[at] ^ 0x40);
    EXPECT_THROW(open(file), DataError) << at;
  }
}

}  // namespace
}  // namespace maniple

// The format of teacher stores: packing, files, keys, refusals, damage. Spec model.md 3.6.
#include "data/teacher_store.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/errors.h"
#include "core/files.h"
#include "core/half.h"
#include "core/random.h"
#include "data/taught_rows.h"
#include "message_of.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSeqLen = 8;

TeacherHeader header_of(const TargetSpec& spec) {
  return {spec, 1000, kSeqLen, "bytes", "runs/teacher", "house", "0123456789abcdef"};
}

// A row as a teacher would give it; token 3 is masked.
TeacherRow make_row(const TargetSpec& spec, uint64_t key) {
  TeacherRow row;
  row.begin = {0};
  for (int64_t t = 0; t < kSeqLen; ++t) {
    const bool masked = t == 3;
    int64_t left = masked ? 0 : spec.num;
    for (int32_t id = static_cast<int32_t>(key % 7 + static_cast<uint64_t>(t)); left > 0; id += 11) {
      const int64_t count = spec.sampled() ? std::min<int64_t>(left, 1 + id % 17) : 1;
      left -= count;
      row.id.push_back(id);
      if (spec.sampled()) row.count.push_back(static_cast<int32_t>(count));
      if (spec.valued()) row.log_value.push_back(-0.25f * static_cast<float>(id % 32));
    }
    row.begin.push_back(static_cast<int32_t>(row.id.size()));
    row.mass.push_back(masked ? 0.f : 0.75f);
    row.label_logp.push_back(masked ? 0.f : -1.5f);
  }
  return row;
}

void expect_equal(const TeacherRow& a, const TeacherRow& b) {
  EXPECT_EQ(a.begin, b.begin);
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.count, b.count);
  EXPECT_EQ(a.log_value, b.log_value);
  EXPECT_EQ(a.mass, b.mass);
  EXPECT_EQ(a.label_logp, b.label_logp);
}

const TargetSpec kCounts{TargetKind::kCounts, 50};
const TargetSpec kSpecs[] = {kCounts,
                             {TargetKind::kCounts, 200},
                             {TargetKind::kSampled, 64},
                             {TargetKind::kImportance, 256, 1, 0.5},
                             {TargetKind::kTopK, 20, 2, 1, 0}};

class TeacherStoreTest : public testing::Test {
 protected:
  TeacherStoreTest() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = testing::TempDir() + "/teacher_store_" + info->name();
    fs::remove_all(folder_);
  }
  ~TeacherStoreTest() override { fs::remove_all(folder_); }

  // Rows 3, 4, 9 of source 5 in one file.
  std::vector<TeacherRow> write(const TargetSpec& spec = kCounts) {
    const TeacherHeader header = prepare_teacher_store(folder_, header_of(spec), true);
    std::vector<TeacherRow> contents;
    for (uint64_t row : {3, 4, 9}) contents.push_back(make_row(spec, row));
    add_teacher_rows(folder_, header, 5, "text.txt", {3, 4, 9}, contents);
    return contents;
  }
  std::string shard() const { return folder_ + "/0000000000000005-0000000003.h5"; }
  static void flip(const std::string& path, int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 4);
    file.seekp(at);
    file.put(byte);
  }

  std::string folder_;
};

TEST(Half, RoundsToEvenAndBack) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float value = half_value(static_cast<uint16_t>(bits));
    EXPECT_EQ(half_bits(value), bits);
    EXPECT_EQ(half_bits(-value), bits | 0x8000);
    const float next = half_value(static_cast<uint16_t>(bits + 1)), middle = (value + next) / 2;
    if (bits + 1 < 0x7c00) {
      EXPECT_EQ(half_bits(middle), bits % 2 ? bits + 1 : bits);
      EXPECT_EQ(half_bits(std::nextafter(middle, INFINITY)), bits + 1);
    }
  }
  EXPECT_EQ(half_bits(1), 0x3c00);
  EXPECT_EQ(half_value(0x3555), 0.333251953125f);
  EXPECT_EQ(half_bits(70000), 0x7c00);
  EXPECT_TRUE(std::isnan(half_value(half_bits(NAN))));
}

TEST(TeacherFormat, AnEntryOfCountsIsThreeBytes) {
  TeacherRow row;
  row.id = {0x2ABCD, 1};
  row.count = {48, 2};
  // 0x2ABCD + (47 << 18) = 0xBEABCD, 1 + (1 << 18) = 0x040001, least significant byte first.
  EXPECT_EQ(pack_entries(row, kCounts), std::string("\xCD\xAB\xBE\x01\x00\x04", 6));
  EXPECT_EQ(kCounts.entry_bits(), 24);
  EXPECT_EQ((TargetSpec{TargetKind::kCounts, 65}.entry_bits()), 26);
  EXPECT_EQ((TargetSpec{TargetKind::kTopK, 20}.entry_bits()), 34);
  EXPECT_EQ((TargetSpec{TargetKind::kSampled, 64}.entry_bits()), 40);
}

TEST(TeacherFormat, EntriesComeBack) {
  for (const TargetSpec& spec : kSpecs) {
    const TeacherRow row = make_row(spec, 2);
    TeacherRow back;
    back.mass = row.mass;
    back.label_logp = row.label_logp;
    unpack_entries(pack_entries(row, spec), header_of(spec), "here", back);
    expect_equal(row, back);
  }
}

TEST(TeacherFormat, DamagedEntriesAreRefused) {
  const TeacherRow row = make_row(kCounts, 2);
  const std::string good = pack_entries(row, kCounts);
  auto unpack = [&](const std::string& bytes) {
    TeacherRow back;
    back.mass = row.mass;
    unpack_entries(bytes, header_of(kCounts), "here", back);
  };
  EXPECT_NO_THROW(unpack(good));
  EXPECT_THROW(unpack(good.substr(0, good.size() - 1)), DataError);
  EXPECT_THROW(unpack(good + '\1'), DataError);
  std::string beyond = good;
  beyond[1] = '\xff';  // an id beyond the vocabulary
  EXPECT_THROW(unpack(beyond), DataError);
}

TEST(TeacherFormat, HeadersComeBack) {
  for (const TargetSpec& spec : kSpecs) {
    const TeacherHeader h = header_of(spec), back = parse_header(header_text(h), "header.json");
    EXPECT_EQ(header_text(back), header_text(h));
    EXPECT_EQ(back.targets, spec);
  }
}

TEST(TeacherFormat, ForeignHeadersAreRefused) {
  const std::string good = header_text(header_of(kCounts));
  auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  const std::string bad[] = {"", "{}", "[1]", good.substr(0, 100),
                             with("maniple-teacher-store", "other"),
                             with("\"version\": 1", "\"version\": 2"),
                             with("\"counts\"", "\"guesses\""), with("\"num\": 50", "\"num\": 0"),
                             with("\"num\": 50", "\"num\": 257"), with("\"num\": 50", "\"num\": \"x\""),
                             with("\"seq_len\": 8", "\"seq_len\": -1"),
                             with("token after it", "token before it"),
                             with("positions restart", "positions go on"),
                             with("\"count_bits\": 6", "\"count_bits\": 8")};
  for (const std::string& text : bad) {
    const std::string message = message_of<DataError>([&] { parse_header(text, "H"); });
    EXPECT_NE(message.find("teacher store: H: "), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST_F(TeacherStoreTest, RowsComeBackBySample) {
  for (const TargetSpec& spec : kSpecs) {
    fs::remove_all(folder_);
    const std::vector<TeacherRow> contents = write(spec);
    const TeacherStore store(folder_);
    EXPECT_EQ(store.num_rows(), 3);
    expect_equal(store.read({5, 9}), contents[2]);
    expect_equal(store.read({5, 3}), contents[0]);
    EXPECT_FALSE(store.has({5, 5}));
    EXPECT_FALSE(store.has({6, 3}));
  }
}

TEST_F(TeacherStoreTest, EqualContentsAreEqualBytes) {
  write();
  const std::string first = read_file(shard());
  fs::remove_all(folder_);
  write();
  EXPECT_EQ(read_file(shard()), first);
}

TEST_F(TeacherStoreTest, AStoreGrows) {
  write();
  const TeacherHeader header = prepare_teacher_store(folder_, header_of(kCounts), true);
  add_teacher_rows(folder_, header, 5, "text.txt", {10}, {make_row(kCounts, 10)});
  add_teacher_rows(folder_, header, 6, "more.txt", {3}, {make_row(kCounts, 1)});
  const TeacherStore store(folder_);
  EXPECT_EQ(store.num_rows(), 5);
  expect_equal(store.read({6, 3}), make_row(kCounts, 1));
}

TEST_F(TeacherStoreTest, OtherTargetsDoNotGoIntoAStore) {
  write();
  TeacherHeader other = header_of(kCounts);
  other.teacher = "moved/teacher";  // the same teacher elsewhere
  EXPECT_EQ(prepare_teacher_store(folder_, other, true).teacher, "runs/teacher");
  other.targets.seed = 2;
  other.teacher_hash = "x";
  const std::string message =
      message_of<DataError>([&] { prepare_teacher_store(folder_, other, true); });
  EXPECT_NE(message.find("seed: 1 in the store, 2 here"), std::string::npos) << message;
  EXPECT_NE(message.find("teacher_hash"), std::string::npos) << message;
}

TEST_F(TeacherStoreTest, UnfinishedFilesAreNoRows) {
  write();
  write_file_atomic(folder_ + "/0000000000000005-0000000020.h5.tmp.7.0", "half a file");
  EXPECT_EQ(TeacherStore(folder_).num_rows(), 3);
  prepare_teacher_store(folder_, header_of(kCounts), true);
  EXPECT_FALSE(fs::exists(folder_ + "/0000000000000005-0000000020.h5.tmp.7.0"));
}

TEST_F(TeacherStoreTest, MissingStoresAndRowsAreNamed) {
  EXPECT_NE(message_of<NoInputError>([&] { TeacherStore store(folder_); }).find(folder_),
            std::string::npos);
  write();
  const TeacherStore store(folder_);
  const std::string message = message_of<DataError>([&] { store.read({5, 7}); });
  EXPECT_NE(message.find("row 7 of source 0000000000000005"), std::string::npos) << message;
}

TEST_F(TeacherStoreTest, ARowIsStoredOnce) {
  write();
  fs::copy(shard(), folder_ + "/copy.h5");
  const std::string message = message_of<DataError>([&] { TeacherStore store(folder_); });
  EXPECT_NE(message.find("copy.h5"), std::string::npos) << message;
}

TEST_F(TeacherStoreTest, AFileOfAnotherStoreIsRefused) {
  write();
  TeacherHeader other = header_of(kCounts);
  other.targets.seed = 3;
  write_file_atomic(folder_ + "/header.json", header_text(other));
  const std::string message = message_of<DataError>([&] { TeacherStore store(folder_); });
  EXPECT_NE(message.find("its header is not that of the store"), std::string::npos) << message;
}

TEST_F(TeacherStoreTest, EveryFlippedByteIsFoundOrHarmless) {
  const std::vector<TeacherRow> contents = write();
  const auto size = static_cast<int64_t>(fs::file_size(shard()));
  int64_t named = 0;
  for (int64_t at = 0; at < size; at += 3) {
    flip(shard(), at);
    try {
      const TeacherStore store(folder_);
      for (size_t i = 0; i < 3; ++i)
        if (const SampleId sample{5, std::vector<int64_t>{3, 4, 9}[i]}; store.has(sample))
          expect_equal(store.read(sample), contents[i]);
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(shard()), std::string::npos) << e.what();
      ++named;
    }
    flip(shard(), at);
  }
  EXPECT_GT(named, 100);
  EXPECT_EQ(TeacherStore(folder_).num_rows(), 3);
}

TEST_F(TeacherStoreTest, TruncatedFilesAreRefused) {
  write();
  const auto size = fs::file_size(shard());
  for (const size_t keep : {size_t{0}, size_t{100}, size / 2, size - 1}) {
    write();
    fs::resize_file(shard(), keep);
    EXPECT_THROW(TeacherStore(folder_).read({5, 9}), DataError) << keep;
  }
}

class TwoRows : public RowSource {
 public:
  Row row(Split, uint64_t number) const override { return read({5, number == 0 ? 3 : 9}); }
  Row read(const SampleId& sample) const override {
    Row r;
    r.target.assign(kSeqLen, 1);
    r.target[static_cast<size_t>(masked)] = -1;
    r.sample = sample;
    return r;
  }
  SampleId sample_of(Split, uint64_t number) const override { return {5, number == 0 ? 3 : 9}; }
  std::vector<Source> sources() const override { return {{"text.txt", 5, 10}}; }
  int64_t num_rows(Split) const override { return 2; }
  int64_t num_tokens() const override { return 2 * kSeqLen; }
  double bytes_per_token() const override { return 1; }
  uint64_t fingerprint() const override { return 1; }
  int64_t masked = 3;
};

TEST_F(TeacherStoreTest, RowsCarryTheirTargets) {
  const std::vector<TeacherRow> contents = write();
  const auto rows =
      attach_teacher(std::make_unique<TwoRows>(), std::make_unique<TeacherStore>(folder_));
  expect_equal(rows->row(Split::kTrain, 1).teacher, contents[2]);
  EXPECT_TRUE(rows->row(Split::kValidation, 1).teacher.begin.empty());
}

TEST_F(TeacherStoreTest, OtherMasksAreRefused) {
  write();
  auto other = std::make_unique<TwoRows>();
  other->masked = 4;
  const auto rows = attach_teacher(std::move(other), std::make_unique<TeacherStore>(folder_));
  EXPECT_THROW(rows->row(Split::kTrain, 0), DataError);
}

}  // namespace
}  // namespace maniple

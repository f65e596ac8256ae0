#include "checkpoint/checkpoint.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "checkpoint/disk.h"
#include "checkpoint/folders.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "core/errors.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;
using Shape = std::vector<int64_t>;
using Slices = std::vector<TensorSlice>;

const CheckpointConfig kKeepAll{.every = 0, .keep = 1000, .keep_every = 0};

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    std::string pattern = (fs::temp_directory_path() / "maniple-checkpoint-XXXXXX").string();
    root_ = std::string(mkdtemp(pattern.data())) + "/checkpoints";
  }
  ~CheckpointTest() override { fs::remove_all(fs::path(root_).parent_path()); }

  std::string folder(int64_t step) const { return root_ + "/" + step_folder_name(step); }

  std::unique_ptr<CheckpointInfo> latest() {
    warnings_.clear();
    return find_latest(root_, [this](const std::string& line) { warnings_.push_back(line); });
  }

  // A checkpoint of one f32 tensor of 1000 elements that all have the value of the step.
  void write_simple(int64_t step, const CheckpointConfig& retention = kKeepAll,
                    const std::string& attempt = "a1") {
    std::vector<float> values(1000, static_cast<float>(step));
    write_checkpoint(root_, step, 0, 1, attempt, {simple(values)}, {{"step", step}}, retention);
  }
  static TensorSlice simple(std::vector<float>& values) {
    return {"master/w", ElementType::kF32, {1000}, {0}, {1000}, 0, 1000, values.data()};
  }
  static float load_simple(const CheckpointInfo& info) {
    std::vector<float> values(1000, -1);
    Slices wanted = {simple(values)};
    load_slices(info, wanted);
    EXPECT_EQ(std::set<float>(values.begin(), values.end()).size(), 1u);
    return values[0];
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(root_))
      found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }

  std::string root_;
  std::vector<std::string> warnings_;
};

// ---- random layouts --------------------------------------------------------------------------

// A whole tensor with the value of element i made from (tensor, i), and never zero.
struct Tensor {
  std::string name;
  ElementType type;
  Shape shape;
  std::vector<char> bytes;
};

Tensor random_tensor(std::mt19937& random, const std::string& name) {
  Tensor tensor{name, static_cast<ElementType>(random() % 4), {}, {}};
  for (size_t rank = random() % 4; rank > 0; --rank) tensor.shape.push_back(1 + random() % 13);
  tensor.bytes.resize(num_elements(tensor.shape) * element_bytes(tensor.type));
  for (char& byte : tensor.bytes) byte = static_cast<char>(1 + random() % 255);
  return tensor;
}

// Slices that hold their own memory.
struct OwnedSlices {
  Slices slices;
  std::vector<std::unique_ptr<char[]>> memory;
};

// A tensor cut along one dim in shards of equal size (the last ones padded), each cut in runs,
// dealt to random writers.
void deal(std::mt19937& random, const Tensor& tensor, std::vector<OwnedSlices>& writers) {
  Shape shape = tensor.shape, offset(shape.size(), 0);
  const size_t dim = shape.empty() ? 0 : random() % std::min<size_t>(shape.size(), 3);
  const int64_t num_shards = shape.empty() ? 1 : 1 + random() % 4;
  if (!shape.empty()) shape[dim] = (shape[dim] + num_shards - 1) / num_shards;
  // Vocabulary-like padding of another dim as well.
  if (shape.size() > 1 && random() % 2) shape[(dim + 1) % shape.size()] += random() % 3;
  for (int64_t shard = 0; shard < num_shards; ++shard) {
    if (!shape.empty()) offset[dim] = shard * shape[dim];
    const int64_t count = num_elements(shape);
    std::vector<int64_t> cuts = {0, count};
    for (size_t i = random() % 4; i > 0; --i) cuts.push_back(random() % (count + 1));
    std::sort(cuts.begin(), cuts.end());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      OwnedSlices& writer = writers[random() % writers.size()];
      const int64_t bytes = (cuts[i + 1] - cuts[i]) * element_bytes(tensor.type);
      writer.memory.push_back(std::make_unique<char[]>(bytes + 1));
      std::memset(writer.memory.back().get(), 0x77, bytes);
      writer.slices.push_back({tensor.name, tensor.type, tensor.shape, offset, shape, cuts[i],
                               cuts[i + 1], writer.memory.back().get()});
    }
  }
}

// Calls visit(element in the slice's memory, element in the tensor or null if padding), by plain
// index arithmetic.
template <typename Visit>
void for_each_element(const TensorSlice& slice, Tensor& tensor, Visit visit) {
  const int64_t bytes = element_bytes(slice.type);
  for (int64_t i = slice.begin; i < slice.end; ++i) {
    int64_t rest = i, global = 0, stride = 1;
    bool padding = false;
    for (size_t d = slice.shape.size(); d-- > 0;) {
      const int64_t index = slice.offset[d] + rest % slice.shape[d];
      rest /= slice.shape[d];
      padding |= index >= slice.global_shape[d];
      global += index * stride;
      stride *= slice.global_shape[d];
    }
    visit(static_cast<char*>(slice.data) + (i - slice.begin) * bytes,
          padding ? nullptr : tensor.bytes.data() + global * bytes);
  }
}

TEST_F(CheckpointTest, AnyLayoutLoadsAnyOther) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::map<std::string, Tensor> tensors;
    for (int i = 0; i < 8; ++i) {
      const std::string name = fmt::format("{}/model.layers.{}.weight", i % 2 ? "m" : "master", i);
      tensors[name] = random_tensor(random, name);
    }
    const int num_writers = 1 + static_cast<int>(random() % 4);
    std::vector<OwnedSlices> writers(num_writers), readers(1 + random() % 4);
    for (auto& [name, tensor] : tensors) {
      deal(random, tensor, writers);
      deal(random, tensor, readers);
    }
    for (OwnedSlices& writer : writers)
      for (TensorSlice& slice : writer.slices)
        for_each_element(slice, tensors[slice.name], [&](char* local, char* global) {
          if (global) std::memcpy(local, global, element_bytes(slice.type));
        });
    std::vector<std::thread> threads;
    for (int w = 0; w < num_writers; ++w)
      threads.emplace_back([&, w] {
        write_checkpoint(root_, seed, w, num_writers, "a1", writers[w].slices, {{"seed", seed}},
                         kKeepAll, 60);
      });
    for (std::thread& thread : threads) thread.join();

    const auto info = latest();
    ASSERT_TRUE(info);
    EXPECT_EQ(info->step, seed);
    EXPECT_EQ(info->meta["seed"], seed);
    for (OwnedSlices& reader : readers) {
      load_slices(*info, reader.slices);
      for (TensorSlice& slice : reader.slices)
        for_each_element(slice, tensors[slice.name], [&](char* local, char* global) {
          const char zero[8] = {};
          ASSERT_EQ(std::memcmp(local, global ? global : zero, element_bytes(slice.type)), 0)
              << slice.name;
        });
    }
    std::map<std::string, TensorEntry> listed;
    for (const TensorEntry& entry : list_tensors(*info)) listed.emplace(entry.name, entry);
    EXPECT_EQ(listed.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      EXPECT_EQ(listed.at(name).type, tensor.type);
      EXPECT_EQ(listed.at(name).global_shape, tensor.shape);
    }
  }
}

TEST_F(CheckpointTest, LargeTensorSplitByInnerDimIsGatheredAcrossBuffers) {
  const int64_t rows = 3000, cols = 1001,
                half = 501;  // 12 MB, the last column of shard 1 is padding
  std::vector<float> shards[2], whole(rows * cols);
  std::vector<std::thread> threads;
  for (int w = 0; w < 2; ++w) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < half; ++c)
        shards[w].push_back(static_cast<float>(r * cols + w * half + c));
    threads.emplace_back([&, w] {
      const TensorSlice slice{"x", ElementType::kF32, {rows, cols},    {0, w * half}, {rows, half},
                              0,   rows * half,       shards[w].data()};
      write_checkpoint(root_, 1, w, 2, "a", {slice}, nullptr, kKeepAll, 60);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Slices wanted = {
      {"x", ElementType::kF32, {rows, cols}, {0, 0}, {rows, cols}, 0, rows * cols, whole.data()}};
  load_slices(*latest(), wanted);
  for (int64_t i = 0; i < rows * cols; ++i) ASSERT_EQ(whole[i], static_cast<float>(i));
}

TEST_F(CheckpointTest, SegmentsSkipPaddingAndMergeWholeDims) {
  const TensorSlice corner{"x", ElementType::kF32, {4, 5}, {2, 3}, {2, 3}, 0, 6, nullptr};
  const auto segments = shard_segments(corner);
  ASSERT_EQ(segments.size(), 2u);
  EXPECT_EQ(segments[1].global, 18);
  EXPECT_EQ(segments[1].local, 3);
  EXPECT_EQ(segments[1].count, 2);
  EXPECT_EQ(stored_segments(corner)[1].local, 2);
  const TensorSlice rows{"x", ElementType::kF32, {6, 5, 7}, {2, 0, 0}, {2, 5, 7}, 3, 70, nullptr};
  EXPECT_EQ(shard_segments(rows).size(), 1u);
}

// ---- what is refused -------------------------------------------------------------------------

TEST_F(CheckpointTest, WrongTypeShapeOrNameIsRefusedNamingBoth) {
  write_simple(1);
  std::vector<double> memory(2000);
  const auto refused = [&](const TensorSlice& wanted) -> std::string {
    Slices slices = {wanted};
    try {
      load_slices(*latest(), slices);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "loaded";
  };
  const auto type =
      refused({"master/w", ElementType::kF64, {1000}, {0}, {1000}, 0, 1000, memory.data()});
  EXPECT_NE(type.find("f32 [1000]"), std::string::npos) << type;
  EXPECT_NE(type.find("f64 [1000]"), std::string::npos) << type;
  const auto shape =
      refused({"master/w", ElementType::kF32, {10, 100}, {0, 0}, {1, 100}, 0, 100, memory.data()});
  EXPECT_NE(shape.find("f32 [10, 100]"), std::string::npos) << shape;
  const auto name =
      refused({"master/q", ElementType::kF32, {1000}, {0}, {1000}, 0, 1000, memory.data()});
  EXPECT_NE(name.find("master/q"), std::string::npos) << name;
}

TEST_F(CheckpointTest, MissingAndDoubleElementsAreNeverWritten) {
  std::vector<float> values(1000);
  TensorSlice gap = simple(values);
  gap.end = 999;
  EXPECT_THROW(write_checkpoint(root_, 1, 0, 1, "a", {gap}, nullptr, kKeepAll), InternalError);
  TensorSlice twice = simple(values);
  twice.begin = 990;
  EXPECT_THROW(write_checkpoint(root_, 1, 0, 1, "a", {simple(values), twice}, nullptr, kKeepAll),
               InternalError);
  EXPECT_TRUE(names().empty());
}

TEST_F(CheckpointTest, MissingAndDoubleElementsAreNeverLoaded) {
  write_simple(1);
  Manifest manifest = read_manifest(folder(1));
  const auto load_with = [&](const Manifest& changed) {
    std::ofstream(folder(1) + "/manifest.json") << manifest_text(changed);
    EXPECT_THROW(verify_checkpoint(folder(1)), CheckpointError);
    std::vector<float> values(1000);
    Slices wanted = {simple(values)};
    EXPECT_THROW(load_slices({1, folder(1), {}}, wanted), CheckpointError);
  };
  Manifest gap = manifest;
  gap.pieces[0].begin = 1;
  load_with(gap);
  Manifest twice = manifest;
  twice.pieces.push_back(twice.pieces[0]);
  load_with(twice);
}

void flip_byte(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const char byte = static_cast<char>(file.get() ^ 0x10);
  file.seekp(at);
  file.put(byte);
}

TEST_F(CheckpointTest, DamagedNewestIsRefusedAndTheOneBeforeIsUsed) {
  const std::string part = "/part-00000.h5", manifest = "/manifest.json";
  const std::map<std::string, std::function<void(const std::string&)>> damages = {
      {"XXH3", [&](const auto& f) { flip_byte(f + part, 3000); }},
      {"bytes, written were",
       [&](const auto& f) { fs::resize_file(f + part, fs::file_size(f + part) - 1); }},
      {"part-00000.h5 is missing", [&](const auto& f) { fs::remove(f + part); }},
      {"no manifest.json", [&](const auto& f) { fs::remove(f + manifest); }},
      {"hash line", [&](const auto& f) { flip_byte(f + manifest, 40); }},
      {"truncated", [&](const auto& f) { std::ofstream(f + manifest) << "garbage {{{"; }},
      {"refused: it has no hash line", [&](const auto& f) { fs::resize_file(f + manifest, 50); }},
      {"format version is 2",
       [&](const auto& f) {
         Manifest old = read_manifest(f);
         std::string text = manifest_text(old);
         text = text.substr(0, text.rfind("\n\"xxh3\""));
         text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
         std::ofstream(f + manifest)
             << text << "\n\"xxh3\": \"" << disk::hash_text(text) << "\"}\n";
       }},
  };
  for (const auto& [reason, damage] : damages) {
    SCOPED_TRACE(reason);
    write_simple(1);
    write_simple(2);
    damage(folder(2));
    EXPECT_THROW(open_checkpoint(folder(2)), CheckpointError);
    const auto info = latest();
    ASSERT_TRUE(info);
    EXPECT_EQ(info->step, 1);
    EXPECT_EQ(load_simple(*info), 1);
    ASSERT_EQ(warnings_.size(), 1u);
    EXPECT_NE(warnings_[0].find(reason), std::string::npos) << warnings_[0];
    EXPECT_EQ(warnings_[0].find('\n'), std::string::npos);
    fs::remove_all(root_);
  }
}

TEST_F(CheckpointTest, AnyFlippedByteOfTheManifestIsNoticed) {
  write_simple(1);
  std::string text;
  ASSERT_TRUE(disk::read_text(folder(1) + "/manifest.json", text));
  for (size_t i = 0; i < text.size(); ++i)
    for (const int mask : {0x01, 0x20, 0x80}) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ mask);
      EXPECT_THROW(parse_manifest(changed, "test"), CheckpointError) << i;
    }
}

TEST_F(CheckpointTest, ManifestWithAGoodHashAndImpossibleContentsIsRefused) {
  write_simple(1);
  std::string text;
  ASSERT_TRUE(disk::read_text(folder(1) + "/manifest.json", text));
  text = text.substr(0, text.rfind("\n\"xxh3\""));
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    std::string changed = text;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % changed.size();
      if (random() % 2) {
        changed[at] = "0123456789-\"[]{},:en"[random() % 20];
      } else {
        changed.erase(at, random() % 20);
      }
    }
    const std::string hash = disk::hash_text(changed);
    try {
      parse_manifest(changed + "\n\"xxh3\": \"" + hash + "\"}\n", "test");
    } catch (const CheckpointError&) {
    }
  }
}

TEST_F(CheckpointTest, WhereThereIsNothingNothingIsFound) {
  EXPECT_FALSE(latest());
  EXPECT_TRUE(warnings_.empty());
  EXPECT_THROW(open_checkpoint(root_), NoInputError);
  fs::create_directories(root_);
  EXPECT_FALSE(latest());
  EXPECT_THROW(open_checkpoint(root_), NoInputError);
}

TEST_F(CheckpointTest, StepFolderCheckpointsFolderAndRunFolderOpen) {
  write_simple(1);
  write_simple(2);
  EXPECT_EQ(open_checkpoint(folder(1)).step, 1);
  EXPECT_EQ(open_checkpoint(folder(1) + "/").step, 1);
  EXPECT_EQ(open_checkpoint(root_).step, 2);
  EXPECT_EQ(open_checkpoint(fs::path(root_).parent_path()).step, 2);
  flip_byte(folder(2) + "/part-00000.h5", 3000);
  EXPECT_EQ(open_checkpoint(root_).step, 1);
  flip_byte(folder(1) + "/part-00000.h5", 3000);
  EXPECT_THROW(open_checkpoint(root_), CheckpointError);
}

// ---- attempts, replacement, retention --------------------------------------------------------

TEST_F(CheckpointTest, PartOfAKilledAttemptIsNotMixedIn) {
  std::vector<float> stale(1000, -5), fresh(1000, 7);
  const auto half = [](std::vector<float>& values, int w) {
    TensorSlice slice = simple(values);
    slice.begin = w * 500;
    slice.end = slice.begin + 500;
    return slice;
  };
  // Writer 1 of attempt a1 finished its part; then the job was killed.
  write_checkpoint(root_, 1, 1, 2, "a1", {half(stale, 1)}, nullptr, kKeepAll);
  EXPECT_FALSE(latest());
  // Attempt a2: writer 0 alone does not take it.
  EXPECT_THROW(write_checkpoint(root_, 1, 0, 2, "a2", {half(fresh, 0)}, nullptr, kKeepAll, 0.05),
               IoError);
  write_checkpoint(root_, 1, 1, 2, "a3", {half(fresh, 1)}, nullptr, kKeepAll);
  write_checkpoint(root_, 1, 0, 2, "a3", {half(fresh, 0)}, nullptr, kKeepAll);
  EXPECT_EQ(load_simple(*latest()), 7);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000001"}));
}

TEST_F(CheckpointTest, WaitingForPartsEndsNamingTheMissingWriters) {
  std::vector<float> values(1000);
  try {
    write_checkpoint(root_, 1, 0, 3, "a", {simple(values)}, nullptr, kKeepAll, 0.05);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("writer 1, 2 of 3"), std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(names().empty());
}

TEST_F(CheckpointTest, SameStepIsReplaced) {
  write_simple(1);
  std::vector<float> values(1000, 9);
  write_checkpoint(root_, 1, 0, 1, "a2", {simple(values)}, nullptr, kKeepAll);
  EXPECT_EQ(load_simple(*latest()), 9);
  EXPECT_TRUE(warnings_.empty());
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000001"}));
}

TEST_F(CheckpointTest, CheckpointSetAsideByAKilledReplacementIsFound) {
  write_simple(1);
  fs::rename(folder(1), folder(1) + kReplacedSuffix);
  EXPECT_EQ(load_simple(*latest()), 1);
}

TEST_F(CheckpointTest, RetentionKeepsTheLastAndEveryNth) {
  const CheckpointConfig retention{.every = 10, .keep = 2, .keep_every = 3};
  fs::create_directories(folder(5));                          // incomplete
  fs::create_directories(folder(15) + kPartialSuffix + "x");  // of a killed run
  for (int64_t step = 10; step <= 80; step += 10) write_simple(step, retention);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000030", "step-00000060",
                                               "step-00000070", "step-00000080"}));
  for (const int64_t step : {30, 60, 70, 80}) EXPECT_EQ(open_checkpoint(folder(step)).step, step);
}

TEST_F(CheckpointTest, TheNewestIsKeptEvenIfNoneIsAskedFor) {
  write_simple(1, {.every = 1, .keep = 0, .keep_every = 0});
  write_simple(2, {.every = 1, .keep = 0, .keep_every = 0});
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000002"}));
}

TEST_F(CheckpointTest, AfterARollBackTheRunsOwnCheckpointIsTheLatest) {
  const CheckpointConfig keep_one{.every = 1, .keep = 1, .keep_every = 0};
  write_simple(10, keep_one);
  write_simple(6, keep_one);
  EXPECT_EQ(latest()->step, 6);
  fs::remove(root_ + "/latest");
  EXPECT_EQ(latest()->step, 10);
}

// ---- outputs that cannot be written ----------------------------------------------------------

TEST_F(CheckpointTest, RootThatIsAFileIsAnIoErrorWithTheReason) {
  std::ofstream(root_) << "x";
  std::vector<float> values(1000);
  testing::internal::CaptureStderr();
  try {
    write_checkpoint(root_, 1, 0, 1, "a", {simple(values)}, nullptr, kKeepAll);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("Not a directory"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(root_), std::string::npos) << error.what();
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

// A limit on the size of files fails writes in their middle as a full disk does.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST_F(CheckpointTest, WriteThatFailsMidwayLeavesTheOneBefore) {
  write_simple(1);
  std::vector<float> values(1 << 20, 3);
  const Slices slices = {
      {"a", ElementType::kF32, {1000}, {0}, {1000}, 0, 1000, values.data()},
      {"b", ElementType::kF32, {1 << 20}, {0}, {1 << 20}, 0, 1 << 20, values.data()}};
  const auto open_files = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  testing::internal::CaptureStderr();
  const auto before = open_files();
  for (const rlim_t limit : {100, 1000, 2500, 5000, 100000, 4190000, 4198000}) {
    SCOPED_TRACE(limit);
    std::string message;
    {
      const FileSizeLimit full(limit);
      try {
        write_checkpoint(root_, 2, 0, 1, "a", slices, nullptr, kKeepAll);
      } catch (const IoError& error) {
        message = error.what();
      }
    }
    EXPECT_EQ(open_files(), before);
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
    EXPECT_NE(message.find("part-00000.h5"), std::string::npos) << message;
    EXPECT_EQ(load_simple(*latest()), 1);
    EXPECT_TRUE(warnings_.empty());
    EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000001"}));
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  write_checkpoint(root_, 2, 0, 1, "a", slices, nullptr, kKeepAll);
  EXPECT_EQ(latest()->step, 2);
}

TEST_F(CheckpointTest, FailureOfOneWriterReachesWriterZeroAtOnce) {
  std::vector<float> values(1000);
  fs::create_directories(folder(1) + kPartialSuffix + "a/part-00001.h5.tmp/in-the-way");
  std::string other;
  std::thread writer([&] {
    try {
      write_checkpoint(root_, 1, 1, 2, "a", {simple(values)}, nullptr, kKeepAll);
    } catch (const IoError& error) {
      other = error.what();
    }
  });
  writer.join();
  EXPECT_NE(other.find("part-00001.h5"), std::string::npos) << other;
  try {
    write_checkpoint(root_, 1, 0, 2, "a", {}, nullptr, kKeepAll, 600);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("writer 1 failed"), std::string::npos) << error.what();
  }
}

// ---- what other programs see -----------------------------------------------------------------

TEST_F(CheckpointTest, Hdf5ConvertsBf16AsTheFloatItIs) {
  std::vector<uint16_t> values = {0x3f80, 0xc020, 0x3dcd, 0x0001};
  write_checkpoint(root_, 1, 0, 1, "a",
                   {{"weights/x", ElementType::kBf16, {4}, {0}, {4}, 0, 4, values.data()}}, nullptr,
                   kKeepAll);
  const hid_t file = H5Fopen((folder(1) + "/part-00000.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t data = H5Dopen2(file, "/weights/x", H5P_DEFAULT), type = H5Dget_type(data);
  EXPECT_EQ(H5Tget_size(type), 2u);
  EXPECT_EQ(H5Tget_class(type), H5T_FLOAT);
  float read[4] = {};
  EXPECT_GE(H5Dread(data, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, read), 0);
  H5Tclose(type);
  H5Dclose(data);
  H5Fclose(file);
  for (int i = 0; i < 4; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &read[i], 4);
    EXPECT_EQ(bits, uint32_t{values[i]} << 16) << i;
  }
}

}  // namespace
}  // namespace maniple

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/errors.h"
#include "core/random.h"
#include "data/file_bytes.h"
#include "data/hashed_file.h"
#include "data/token_stream.h"

namespace maniple {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kHeaderBytes = 9 + 8 + 1 + 8 + 8;

// Fields of the index are not aligned.
template <typename T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Calls visit(T{}) with the token type of a dtype code; false for an unknown code.
template <typename Visit>
bool with_dtype(int code, Visit visit) {
  switch (code) {
    case 1:
      visit(uint8_t{});
      return true;
    case 2:
      visit(int8_t{});
      return true;
    case 3:
      visit(int16_t{});
      return true;
    case 4:
      visit(int32_t{});
      return true;
    case 5:
      visit(int64_t{});
      return true;
    case 8:
      visit(uint16_t{});
      return true;
    default:
      return false;
  }
}

class MegatronStream : public TokenStream {
 public:
  MegatronStream(const std::string& path, int64_t vocab_size)
      : idx_path_(path + ".idx"), bin_path_(path + ".bin"), idx_(idx_path_) {
    read_header();
    bin_ = std::make_unique<HashedFile>(
        bin_path_, [&](int64_t begin, std::span<const uint8_t> chunk) { check_tokens(begin, chunk, vocab_size); });
    check_sequences();
    check_documents();
    const uint64_t lengths = XXH3_64bits(lengths_, static_cast<size_t>(4 * num_sequences_));
    hash_ = key_of(bin_->hash(), lengths, static_cast<uint64_t>(dtype_));
  }

  int64_t num_tokens() const override { return num_tokens_; }
  int64_t num_documents() const override { return num_sequences_; }
  int64_t document_start(int64_t document) const override {
    if (document == num_sequences_) return num_tokens_;
    return load<int64_t>(pointers_ + 8 * document) / token_bytes_;
  }
  double bytes_per_token() const override { return 0; }
  uint64_t content_hash() const override { return hash_; }

  void read(int64_t offset, std::span<int32_t> out) const override {
    std::vector<uint8_t> bytes(out.size() * static_cast<size_t>(token_bytes_));
    bin_->read(offset * token_bytes_, bytes);
    with_dtype(dtype_, [&]<typename T>(T) {
      for (size_t i = 0; i < out.size(); ++i)
        out[i] = static_cast<int32_t>(load<T>(bytes.data() + i * sizeof(T)));
    });
  }

 private:
  template <typename... Args>
  [[noreturn]] void refuse_index(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError(fmt::format("megatron index {}: {}; write the data set again", idx_path_,
                                fmt::format(format, std::forward<Args>(args)...)));
  }

  void read_header() {
    const std::span<const uint8_t> idx = idx_.bytes();
    const auto size = static_cast<int64_t>(idx.size());
    if (size < kHeaderBytes) refuse_index("{} bytes, but the header has {}", size, kHeaderBytes);
    if (std::memcmp(idx.data(), kMagic.data(), kMagic.size()) != 0)
      refuse_index("does not begin with the magic MMIDIDX");
    const auto version = load<uint64_t>(idx.data() + 9);
    if (version != 1) refuse_index("version is {}, must be 1", version);
    dtype_ = idx[17];
    if (!with_dtype(dtype_, [&]<typename T>(T) { token_bytes_ = sizeof(T); }))
      refuse_index("dtype code is {}, must be 1, 2, 3, 4, 5 or 8 (an integer type)", dtype_);
    const auto sequences = load<uint64_t>(idx.data() + 18);
    const auto marks = load<uint64_t>(idx.data() + 26);
    // Every count is at most the file's size before it is multiplied.
    const auto limit = static_cast<uint64_t>(size);
    if (sequences == 0 || sequences > limit || marks > limit ||
        static_cast<uint64_t>(size) != kHeaderBytes + 12 * sequences + 8 * marks)
      refuse_index(
          "{} bytes, but {} sequences (at least 1) and {} document marks need 34 + 12 n + "
          "8 m (sequence modes are not supported)",
          size, sequences, marks);
    num_sequences_ = static_cast<int64_t>(sequences);
    num_marks_ = static_cast<int64_t>(marks);
    lengths_ = idx.data() + kHeaderBytes;
    pointers_ = lengths_ + 4 * num_sequences_;
    marks_ = pointers_ + 8 * num_sequences_;
  }

  void check_sequences() {
    const int64_t bin_size = bin_->size();
    int64_t end = 0;  // n < 2^62 / 12 lengths below 2^31, stopped at the size of .bin: no overflow
    for (int64_t i = 0; i < num_sequences_; ++i) {
      const auto length = load<int32_t>(lengths_ + 4 * i);
      const auto pointer = load<int64_t>(pointers_ + 8 * i);
      if (length < 0) refuse_index("length of sequence {} is {}, must not be negative", i, length);
      if (pointer != end)
        refuse_index("sequence {} is at byte {}, must follow the one before at byte {}", i, pointer,
                     end);
      end += int64_t{length} * token_bytes_;
      if (end > bin_size)
        refuse_index("sequence {} ends at byte {} of {}, which has {} bytes", i, end, bin_path_,
                     bin_size);
    }
    if (end != bin_size)
      refuse_index("sequences end at byte {} of {}, which has {} bytes; they must be equal", end,
                   bin_path_, bin_size);
    num_tokens_ = end / token_bytes_;
  }

  void check_documents() const {
    if (num_marks_ == 0) refuse_index("no document marks, must be at least 1");
    int64_t last = 0;
    for (int64_t i = 0; i < num_marks_; ++i) {
      const auto mark = load<int64_t>(marks_ + 8 * i);
      if (mark < last || mark > num_sequences_ || (i == 0 && mark != 0))
        refuse_index("document mark {} is {}, must not fall, must begin with 0 and end with {}", i,
                     mark, num_sequences_);
      last = mark;
    }
    if (last != num_sequences_)
      refuse_index("the last document mark is {}, must be the number of sequences {}", last,
                   num_sequences_);
  }

  // A chunk holds whole tokens.
  void check_tokens(int64_t begin, std::span<const uint8_t> chunk, int64_t vocab_size) const {
    with_dtype(dtype_, [&]<typename T>(T) {
      T low = std::numeric_limits<T>::max(), high = std::numeric_limits<T>::min();
      const size_t count = chunk.size() / sizeof(T);
      for (size_t i = 0; i < count; ++i) {
        const T token = load<T>(chunk.data() + i * sizeof(T));
        low = std::min(low, token);
        high = std::max(high, token);
      }
      if (count > 0 && (int64_t{low} < 0 || int64_t{high} >= vocab_size)) {
        const int64_t first = begin / token_bytes_;
        throw DataError(fmt::format(
            "megatron data {}: tokens {} to {} hold ids from {} to {}, must be in 0..{} "
            "(vocab_size - 1); use the model of this data's tokenizer",
            bin_path_, first, first + static_cast<int64_t>(count) - 1, low, high, vocab_size - 1));
      }
    });
  }

  std::string idx_path_, bin_path_;
  FileBytes idx_;
  std::unique_ptr<HashedFile> bin_;
  int dtype_ = 0;
  int64_t token_bytes_ = 0, num_sequences_ = 0, num_marks_ = 0, num_tokens_ = 0;
  const uint8_t *lengths_ = nullptr, *pointers_ = nullptr, *marks_ = nullptr;  // into idx_
  uint64_t hash_ = 0;
};

}  // namespace

std::unique_ptr<TokenStream> open_megatron(const std::string& path, int64_t vocab_size) {
  return std::make_unique<MegatronStream>(path, vocab_size);
}

}  // namespace maniple

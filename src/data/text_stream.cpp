#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/errors.h"
#include "core/random.h"
#include "data/hashed_file.h"
#include "data/token_stream.h"

namespace maniple {
namespace {

namespace fs = std::filesystem;

// Paths of the files under a folder, relative, sorted.
std::vector<std::string> list_files(const fs::path& folder) {
  std::vector<std::string> files;
  try {
    for (auto it = fs::recursive_directory_iterator(folder); it != fs::end(it); ++it) {
      const fs::directory_entry& entry = *it;
      if (entry.path().filename().native().starts_with('.')) {
        if (entry.is_directory()) it.disable_recursion_pending();
        continue;
      }
      if (entry.is_regular_file() && entry.file_size() > 0)
        files.push_back(entry.path().lexically_relative(folder).generic_string());
    }
  } catch (const fs::filesystem_error& error) {
    throw DataError(fmt::format("text source {}: {}; every file and folder in it must be readable",
                                folder.string(), error.what()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

class TextStream : public TokenStream {
 public:
  explicit TextStream(const std::string& path) {
    const bool folder = fs::is_directory(path);
    std::vector<std::string> files;
    if (folder)
      for (const std::string& file : list_files(path)) files.push_back((fs::path(path) / file));
    else
      files.push_back(path);
    for (const std::string& file : files) {
      HashedFile opened(file);
      if (opened.size() == 0) continue;
      hash_ = key_of(hash_, opened.hash(), opened.size());
      starts_.push_back(starts_.back() + opened.size() + 1);
      files_.push_back(std::move(opened));
    }
    if (files_.empty())
      throw DataError(fmt::format(
          "text source {} {}; it must hold at least one byte of text", path,
          folder ? "has no file that is neither empty nor hidden" : "is an empty file"));
  }

  int64_t num_tokens() const override { return starts_.back(); }
  int64_t num_documents() const override { return static_cast<int64_t>(files_.size()); }
  int64_t document_start(int64_t document) const override {
    return starts_[static_cast<size_t>(document)];
  }
  double bytes_per_token() const override { return 1; }
  uint64_t content_hash() const override { return hash_; }

  void read(int64_t offset, std::span<int32_t> out) const override {
    size_t written = 0;
    std::vector<uint8_t> bytes;
    for (auto file = static_cast<size_t>(document_of(offset)); written < out.size(); ++file) {
      const int64_t begin = offset - starts_[file];
      bytes.resize(std::min(static_cast<size_t>(files_[file].size() - begin), out.size() - written));
      files_[file].read(begin, bytes);
      std::copy(bytes.begin(), bytes.end(), out.begin() + static_cast<std::ptrdiff_t>(written));
      written += bytes.size();
      if (written < out.size()) out[written++] = kEndOfDocument;
      offset = starts_[file + 1];
    }
  }

 private:
  std::vector<HashedFile> files_;
  std::vector<int64_t> starts_ = {0};  // one more than files_
  uint64_t hash_ = 0;
};

}  // namespace

std::unique_ptr<TokenStream> open_text(const std::string& path, int64_t vocab_size) {
  if (vocab_size <= kEndOfDocument)
    throw ConfigError(
        fmt::format("text source {}: vocab_size is {}; text needs at least 257 (ids "
                    "0-255 are the bytes, 256 ends a document); raise vocab_size",
                    path, vocab_size));
  std::error_code error;
  if (!fs::exists(path, error))
    throw NoInputError(
        fmt::format("text source {} does not exist; check data.sources[].path", path));
  return std::make_unique<TextStream>(path);
}

}  // namespace maniple

// One opened data source: token ids in one line, divided into documents.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace maniple {

// Immutable and thread-safe. Documents are numbered from 0 and fill the stream without gaps; one
// may be empty.
class TokenStream {
 public:
  virtual ~TokenStream() = default;
  virtual int64_t num_tokens() const = 0;
  virtual int64_t num_documents() const = 0;
  // First token of a document; num_tokens() for document == num_documents().
  virtual int64_t document_start(int64_t document) const = 0;
  virtual void read(int64_t offset, std::span<int32_t> out) const = 0;
  virtual double bytes_per_token() const = 0;  // 0: unknown
  virtual uint64_t content_hash() const = 0;   // of all tokens and document borders

  // The last document that starts at or before a token.
  int64_t document_of(int64_t offset) const;
};

// A text file, or all files under a folder in the order of their relative paths (bytewise). Hidden
// names, empty files and what is not a regular file are left out. Ids 0-255 are the bytes; each
// file is a document and ends with id 256. Throws ConfigError if vocab_size < 257.
constexpr int32_t kEndOfDocument = 256;
std::unique_ptr<TokenStream> open_text(const std::string& path, int64_t vocab_size);

// Megatron's indexed data set: path.bin with the tokens, path.idx with (little-endian) the magic
// "MMIDIDX\0\0", version u64 = 1, dtype code u8 (1 uint8, 2 int8, 3 int16, 4 int32, 5 int64,
// 8 uint16), number of sequences n u64, number of document marks m u64, lengths i32[n] in tokens,
// byte offsets i64[n] into .bin, document marks i64[m] from 0 to n. Sequences lie back to back in
// .bin and fill it; each sequence is a document here. Checks all of this and every token.
std::unique_ptr<TokenStream> open_megatron(const std::string& path, int64_t vocab_size);

}  // namespace maniple

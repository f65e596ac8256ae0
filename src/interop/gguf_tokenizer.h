// Tokenizers in GGUF metadata (tokenizer.ggml.*): byte-level BPE, as llama.cpp's model `gpt2`.
#pragma once

#include <string>

#include "interop/gguf_file.h"

namespace maniple {

// Ids 0 to 255 are bytes, 256 ends a document, the rest of the vocabulary is padding (spec 4.6).
GgufMetadata byte_tokenizer(int64_t vocab_size);

// The tokenizer of a Hugging Face folder: tokenizer.json (and config.json's bos and eos). Adds
// nothing and says why in `warning` where there is none, or one of another kind than byte-level
// BPE. Throws DataError for a tokenizer.json that contradicts itself or the vocabulary.
GgufMetadata folder_tokenizer(const std::string& folder, int64_t vocab_size, std::string* warning);

}  // namespace maniple

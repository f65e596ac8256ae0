// JSON files that come with models: config.json, tokenizer.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace maniple {

// The object in a file from outside, at most 64 levels deep, so that nothing that walks it runs out
// of stack. `what` says in messages what the file is for. NoInputError, IoError; DataError where the
// file holds no such object.
nlohmann::json read_json_object(const std::string& path, const std::string& what);

}  // namespace maniple

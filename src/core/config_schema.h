// The schema of the configuration: loading with every mistake refused, printing, documentation.
// All of it follows one table of keys (core/config_table.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config.h"

namespace maniple {

// Reads a YAML file and applies the overrides "group.key=value" in order; a value is parsed as YAML
// ("data.sources=[{path: x.txt, kind: text}]"), an override beats the file and earlier overrides.
// Keys that are not given keep their defaults; model.preset is "house" if no preset and no
// hf_config is given (an empty string counts as not given). Relative paths stay relative to the
// current folder.
//
// Throws NoInputError if the file does not exist and ConfigError for everything else, in one line:
//   <file>:<line>:<column>: <key>: <what was found>; <the rule>; <nearest valid name or fix>
// where an override stands in place of file, line and column: "override 'optim.lrr=1': ...".
// Refused: YAML syntax errors, several documents, unknown and duplicate keys, wrong types, values
// out of range, keys of the design that this build does not support, and values that contradict
// each other whatever the mesh and the data.
Config load_config(const std::string& path, const std::vector<std::string>& overrides);

// The same for a text; `name` stands for the file in messages.
Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides = {});

// Every key with its value, in the order of the table; parse_config gives the same config back, bit
// for bit (doubles in their shortest form).
std::string config_to_yaml(const Config& config);

// The same as one object of objects, as for a manifest.
nlohmann::ordered_json config_to_json(const Config& config);

// One line per key whose value differs: "optim.lr: 0.001 -> 3.0e-04". Empty: equal configs.
std::vector<std::string> config_difference(const Config& a, const Config& b);

// The reference page of all keys, and the JSON Schema (2020-12) for editors.
std::string config_reference_markdown();
nlohmann::ordered_json config_json_schema();

}  // namespace maniple

// The YAML of a config, and (inputs of one line without its end) an override. What is accepted must print and read back as itself.
#include "core/config_schema.h"
#include "core/errors.h"
#include "core/files.h"
#include "fuzz.h"

namespace maniple {

std::vector<std::string> fuzz_seeds() {
  return {config_to_yaml(Config{}), read_file(MANIPLE_SOURCE "/tests/program/tiny.yaml"),
          read_file(MANIPLE_SOURCE "/examples/quickstart.yaml"),
          "optim: {lr: 1e-3, betas: [0.9, 0.95]}\nmodel: {layer_types: [full_attention]}\n",
          "optim.lr=3e-4", "data.sources=[{path: x.txt, kind: text}]"};
}

std::vector<std::string> fuzz_dictionary() {
  return {"&a ", "*a", "<<: ", "!!binary ", "---\n", "...\n", "? ", "- ", "|\n  ", "\t", "\"\\x00\"",
          "{", "}", "[", "]", ": ", "null", "~", ".inf", "optim: ", "lr: ", "data: ", "sources: ",
          "[{path: x, kind: text}]", "model: ", "moe: ", "\xff", "\xef\xbb\xbf"};
}

void fuzz_one(const std::string& input) {
  const bool is_override = input.find('\n') == input.npos;
  const Config config = is_override ? parse_config("", "fuzz.yaml", {input})
                                    : parse_config(input, "fuzz.yaml");
  const std::string yaml = config_to_yaml(config);
  MANIPLE_INVARIANT(config_to_yaml(parse_config(yaml, "again")) == yaml, "{} does not read back", yaml);
}

}  // namespace maniple

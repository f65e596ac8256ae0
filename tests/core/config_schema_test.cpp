#include "core/config_schema.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "core/errors.h"

namespace maniple {
namespace {

std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(text, "c.yaml", overrides);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kConfig) << e.what();
    return e.what();
  }
  return "(no error)";
}

struct Bad {
  std::string text;
  std::string place;  // how the message starts
  std::vector<std::string> parts;
};

TEST(ConfigLoader, EveryMistakeNamesItsPlaceAndAFix) {
  const std::vector<Bad> table = {
      // syntax and structure
      {"optim: [1, 2\ntrain: 3", "c.yaml:2:", {"YAML syntax error"}},
      {"optim: {lr: 1", "c.yaml:1:", {"YAML syntax error"}},
      {"optim:\n  lr: *nowhere\n", "c.yaml:2:7: ", {"YAML syntax error"}},
      {"run: {seed: 1}\n---\nrun: {seed: 2}\n", "c.yaml:2:1: ", {"several YAML documents"}},
      {", a\n", "c.yaml:1:1: ", {"YAML syntax error", "comma"}},  // yaml-cpp's LoadAll never ends
      {"just a text", "c.yaml:1:1: config: ", {"map of groups"}},
      {"- a\n- b\n", "c.yaml:1:1: config: ", {"a list"}},
      {"optim: 3\n", "c.yaml:1:8: optim: ", {"found '3'", "map of keys"}},
      {"? [a, b]\n: 1\n", "c.yaml:1:3: config: ", {"as a key"}},
      // unknown keys
      {"optm:\n  lr: 1\n", "c.yaml:1:1: optm: unknown key", {"did you mean 'optim'?"}},
      {"optim:\n  lrr: 1\n", "c.yaml:2:3: optim.lrr: unknown key", {"did you mean 'optim.lr'?"}},
      {"train:\n  setps: 1\n", "c.yaml:2:3: train.setps: ", {"did you mean 'train.steps'?"}},
      {"train:\n  lr: 1\n", "c.yaml:2:3: train.lr: ", {"did you mean 'optim.lr'?"}},
      {"lr: 1\n", "c.yaml:1:1: lr: unknown key", {"did you mean 'optim.lr'?"}},
      {"optim.lr: 1\n", "c.yaml:1:1: optim.lr: unknown key", {"write 'optim:'"}},
      {"model:\n  hiden_size: 8\n", "c.yaml:2:3: ", {"did you mean 'model.hidden_size'?"}},
      {"batch:\n  zzzzzzzzzzzzzzzzzzzzzz: 8\n", "c.yaml:2:3: ", {"micro_batch_rows"}},
      {"data:\n  sources:\n    - {path: x, kind: text, wieght: 1}\n",
       "c.yaml:3:29: data.sources[0].wieght: ",
       {"did you mean 'weight'?"}},
      // duplicates
      {"run: {seed: 1}\nrun: {dir: x}\n", "c.yaml:2:1: run: duplicate key", {"c.yaml:1:1"}},
      {"optim:\n  lr: 1\n  lr: 2\n", "c.yaml:3:3: optim.lr: duplicate key", {"c.yaml:2:3"}},
      {"model:\n  rope_scaling: {factor: 1, factor: 2}\n",
       "c.yaml:2:29: model.rope_scaling.factor: duplicate key",
       {}},
      // types
      {"train:\n  steps: many\n", "c.yaml:2:10: train.steps: ", {"found 'many'", "an integer"}},
      {"train:\n  steps: 1.5\n", "c.yaml:2:10: ", {"an integer"}},
      {"train:\n  steps: 1e3\n", "c.yaml:2:10: ", {"write 1000"}},
      {"train:\n  steps: '3'\n", "c.yaml:2:10: ", {"the text \"3\""}},
      {"train:\n  steps:\n", "c.yaml:2:3: train.steps: ", {"nothing (null)"}},
      {"train:\n  recompute: yes\n", "c.yaml:2:14: ", {"true or false"}},
      {"optim:\n  lr: fast\n", "c.yaml:2:7: ", {"a number"}},
      {"optim:\n  lr: '0.1'\n", "c.yaml:2:7: ", {"remove the quotes"}},
      {"optim:\n  betas: 0.9\n", "c.yaml:2:10: ", {"a list of 2 values"}},
      {"optim:\n  betas: [0.9, x]\n", "c.yaml:2:16: optim.betas[1]: ", {"a number"}},
      {"run:\n  dir: [a]\n", "c.yaml:2:8: ", {"found a list", "a text"}},
      {"data:\n  sources: x.txt\n", "c.yaml:2:12: ", {"a list"}},
      {"data:\n  sources: [x.txt]\n", "c.yaml:2:13: ", {"kind: text"}},
      {"data:\n  sources: [{path: x}]\n", "c.yaml:2:13: ", {"no kind"}},
      {"model:\n  hidden_size: big\n", "c.yaml:2:16: model.hidden_size: ", {"an integer"}},
      {"model:\n  layer_types: [full_atention]\n",
       "c.yaml:2:17: model.layer_types[0]: ",
       {"did you mean 'full_attention'?"}},
      {"model:\n  rope_scaling: 8\n", "c.yaml:2:17: ", {"a map"}},
      {"model:\n  hidden_size: null\n", "c.yaml:2:3: ", {"nothing (null)"}},
      // ranges
      {"train:\n  steps: 0\n", "c.yaml:2:10: train.steps: ", {"at least 1"}},
      {"batch:\n  rows: -4\n", "c.yaml:2:9: ", {"at least 1"}},
      {"run:\n  seed: -1\n", "c.yaml:2:9: ", {"from 0 to 18446744073709551615"}},
      {"train:\n  steps: 9223372036854775808\n", "c.yaml:2:10: ", {"out of range"}},
      {"optim:\n  lr: -0.1\n", "c.yaml:2:7: ", {"at least 0"}},
      {"optim:\n  lr: .nan\n", "c.yaml:2:7: ", {"finite"}},
      {"optim:\n  lr: 1e999\n", "c.yaml:2:7: ", {"finite"}},
      {"optim:\n  betas: [0.9, 1.0]\n", "c.yaml:2:16: ", {"at least 0 and below 1"}},
      {"optim:\n  betas: [0.9]\n", "c.yaml:2:10: ", {"a list of 1"}},
      {"data:\n  validation: 1\n", "c.yaml:2:15: ", {"below 1"}},
      {"moe:\n  aux_coef: -2\n", "c.yaml:2:13: ", {"at least 0, or -1"}},
      {"run:\n  dir: ''\n", "c.yaml:2:8: ", {"must not be empty"}},
      // words
      {"run:\n  device: cdua\n", "c.yaml:2:11: ", {"cpu, cuda", "did you mean 'cuda'?"}},
      {"train:\n  precision: bf61\n", "c.yaml:2:14: ", {"did you mean 'bf16'?"}},
      {"optim:\n  schedule: cosin\n", "c.yaml:2:13: ", {"did you mean 'cosine'?"}},
      {"moe:\n  aux_scope: global\n", "c.yaml:2:14: ", {"previous_step, round, sequence"}},
      // what the design has and this build has not
      {"faults:\n  kill: 2\n", "c.yaml:2:3: faults.kill: ", {"unknown key"}},
      {"elastic:\n  lease: 0.01\n", "c.yaml:2:10: ", {"0.1"}},
      {"quant: {format: int4}\n", "c.yaml:1:17: quant.format: ", {"q4_0", "int4_channel"}},
      {"quant: {format: nvfp4}\n", "c.yaml:1:17: quant.format: ", {"not supported by this build"}},
      {"quant: {kv_cache: int8}\n", "c.yaml:1:9: quant.kv_cache: ", {"not supported by this build"}},
      {"quant: {learned_scales: true}\n", "c.yaml:1:9: quant.learned_scales: ", {"not supported"}},
      {"parallel: {cp: 2}\n", "c.yaml:1:12: ", {"not supported by this build"}},
      {"data: {sources: [{path: x, kind: hdf5}]}\n",
       "c.yaml:1:34: ",
       {"not supported by this build"}},
      // between keys
      {"objective:\n  kind: distill\n", "c.yaml:2:3: ", {"without a teacher", "distill.store"}},
      {"objective: {kind: distill}\ndistill: {variant: full, store: s}\n", "c.yaml:2:11: ", {"full"}},
      {"objective: {kind: distill}\ndistill: {store: s, temperature: 2}\n",
       "c.yaml:2:21: ",
       {"distill.temperature=1"}},
      {"model: {preset: house, hf_config: c.json}\n", "c.yaml:1:24: ", {"exactly one"}},
      {"train: {steps: 10}\noptim: {warmup_steps: 11}\n", "c.yaml:2:9: ", {"train.steps"}},
      {"optim: {lr: 0.1, min_lr: 0.2}\n", "c.yaml:1:18: optim.min_lr: ", {"0.2 is above lr 0.1"}},
      {"optim: {schedule: wsd, decay_steps: 101}\n", "c.yaml:1:24: ", {"decay"}},
      {"batch: {rows: 8, units: 3}\n", "c.yaml:1:18: ", {"divisible"}},
      {"batch: {rows: 8, units: 4, micro_batch_rows: 4}\n", "c.yaml:1:18: ", {"divisible"}},
      {"parallel: {slices: 4}\nbatch: {rows: 8, units: 2}\n",
       "c.yaml:2:18: ",
       {"batch.units >= parallel.slices"}},
      {"eval: {every: 5}\ndata: {validation: 0}\n", "c.yaml:1:8: ", {"held-out"}},
  };
  for (const Bad& bad : table) {
    const std::string message = error_of(bad.text);
    EXPECT_EQ(message.rfind(bad.place, 0), 0u) << bad.text << "\n" << message;
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    for (const std::string& part : bad.parts) {
      EXPECT_NE(message.find(part), message.npos) << part << "\n" << message;
    }
  }
}

TEST(ConfigLoader, EmptyTextGivesTheDefaults) {
  for (const char* text : {"", "# nothing\n", "optim:\n", "---\n"}) {
    const Config config = parse_config(text, "c.yaml");
    EXPECT_EQ(config.model.preset, "house");
    EXPECT_EQ(config.train.steps, 100);
    EXPECT_EQ(config.optim.betas, (std::vector<double>{0.9, 0.95}));
  }
}

TEST(ConfigLoader, MissingFileIsNoInput) {
  try {
    load_config("/nonexistent/c.yaml", {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kNoInput);
    EXPECT_NE(std::string(e.what()).find("/nonexistent/c.yaml"), std::string::npos);
  }
  EXPECT_THROW(load_config("/tmp", {}), IoError);
}

TEST(ConfigLoader, ReadsAFile) {
  const std::string path = testing::TempDir() + "/config_schema_test.yaml";
  std::ofstream(path) << "optim: {lr: 3e-4}\n";
  EXPECT_EQ(load_config(path, {}).optim.lr, 3e-4);
  std::filesystem::remove(path);
}

TEST(ConfigLoader, OverridesBeatTheFileInOrder) {
  const Config config = parse_config(
      "optim: {lr: 1, betas: [0.5, 0.6]}\nmodel: {hf_config: a.json}\n", "c.yaml",
      {"optim.lr=2e-3", "optim.lr=3e-4", "optim.betas=[0.8, 0.9]", "run.resume=ckpt/step=1",
       "data.sources=[{path: x.txt, kind: text}, {kind: megatron, path: y, weight: 2}]",
       "model.hf_config=''", "model.num_local_experts=4", "eval={every: 3, rows: 5}"});
  EXPECT_EQ(config.optim.lr, 3e-4);
  EXPECT_EQ(config.optim.betas, (std::vector<double>{0.8, 0.9}));
  EXPECT_EQ(config.run.resume, "ckpt/step=1");
  ASSERT_EQ(config.data.sources.size(), 2u);
  EXPECT_EQ(config.data.sources[0].path, "x.txt");
  EXPECT_EQ(config.data.sources[0].weight, 1);
  EXPECT_EQ(config.data.sources[1].kind, "megatron");
  EXPECT_EQ(config.data.sources[1].weight, 2);
  EXPECT_EQ(config.model.preset, "house");
  EXPECT_EQ(config.model.overrides, (nlohmann::json{{"num_local_experts", 4}}));
  EXPECT_EQ(config.eval.every, 3);
}

TEST(ConfigLoader, ErrorsOfOverridesNameTheOverride) {
  const std::vector<std::pair<std::string, std::string>> table = {
      {"optim.lrr=1", "did you mean 'optim.lr'?"},
      {"optm.lr=1", "did you mean 'optim'?"},
      {"optim.lr=abc", "a number"},
      {"optim.lr=", "nothing (null)"},
      {"optim.lr", "group.key=value"},
      {"=1", "group.key=value"},
      {"optim.betas=[1, ", "YAML syntax error"},
      {"data.sources=[{path: x}]", "no kind"},
      {"optim.betas.0=1", "unknown key"},
      {"model.*=1", "unknown key"},
      {"quant.format=nvfp4", "not supported by this build"},
      {"optim.warmup_steps=1000", "train.steps"},
  };
  for (const auto& [item, part] : table) {
    const std::string message = error_of("optim: {lr: 1}\n", {item});
    EXPECT_EQ(message.rfind("override '" + item + "': ", 0), 0u) << message;
    EXPECT_NE(message.find(part), message.npos) << part << "\n" << message;
  }
}

TEST(ConfigLoader, ModelFieldsKeepTheirJsonTypes) {
  const Config config = parse_config(
      "model:\n  rope_theta: 10000\n  hidden_size: 64\n  tie_word_embeddings: true\n"
      "  sliding_window: null\n  mlp_only_layers: [0, 2]\n"
      "  layer_types: [full_attention, sliding_attention]\n"
      "  rope_scaling: {rope_type: linear, factor: 8.0, n: 3, quoted: '3', deep: {a: [true, ~]}}\n",
      "c.yaml");
  const nlohmann::json& o = config.model.overrides;
  EXPECT_TRUE(o["rope_theta"].is_number_float());
  EXPECT_TRUE(o["hidden_size"].is_number_integer());
  EXPECT_TRUE(o["sliding_window"].is_null());
  EXPECT_EQ(o["mlp_only_layers"], nlohmann::json::parse("[0, 2]"));
  EXPECT_EQ(o["rope_scaling"],
            nlohmann::json::parse(R"({"rope_type": "linear", "factor": 8.0, "n": 3,
                                      "quoted": "3", "deep": {"a": [true, null]}})"));
}

TEST(ConfigLoader, HostileAliasesAreRefused) {
  EXPECT_NE(error_of("model:\n  rope_scaling: &x {a: *x}\n").find("nested too deeply"),
            std::string::npos);
  std::string bomb = "model:\n  rope_scaling:\n    a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n";
  for (int i = 1; i < 12; ++i) {
    bomb += "    a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) bomb += (j ? ", *a" : "*a") + std::to_string(i - 1);
    bomb += "]\n";
  }
  EXPECT_NE(error_of(bomb).find("too large"), std::string::npos);
}

TEST(ConfigPrinter, RoundTripIsExact) {
  const Config config = parse_config(
      "run: {seed: 18446744073709551615, dir: \"a b\\n'\\\"#: é\\u0007\", resume: 'null'}\n"
      "optim: {lr: 0.1, min_lr: 5e-324, eps: 1e-8, weight_decay: 0.30000000000000004, clip: "
      "1e300}\n"
      "model: {preset: '123', init_from: 'yes', rope_theta: 1e6, head_dim: ~, hidden_size: 64,\n"
      "  layer_types: [full_attention], rope_scaling: {'1': 'true', f: 1.0, i: 1, e: {}, l: []}}\n"
      "data: {sources: [{path: 'a, b}', kind: text, weight: 0.1}, {path: -, kind: megatron}]}\n",
      "c.yaml");
  const std::string text = config_to_yaml(config);
  const Config again = parse_config(text, "again.yaml");
  EXPECT_EQ(config_to_yaml(again), text);
  EXPECT_EQ(config_difference(config, again), std::vector<std::string>{}) << text;
  EXPECT_EQ(again.run.dir, config.run.dir);
  EXPECT_EQ(again.run.seed, UINT64_MAX);
  EXPECT_EQ(again.run.resume, "null");
  EXPECT_EQ(again.optim.min_lr, 5e-324);
  EXPECT_EQ(again.model.overrides, config.model.overrides);
  EXPECT_TRUE(again.model.overrides["rope_scaling"]["f"].is_number_float());
  EXPECT_EQ(again.data.sources[0].path, "a, b}");
}

TEST(ConfigPrinter, DefaultsRoundTripAndHfConfigToo) {
  for (const char* text : {"", "model: {hf_config: x/config.json}"}) {
    const Config config = parse_config(text, "c.yaml");
    EXPECT_EQ(config_difference(config, parse_config(config_to_yaml(config), "again.yaml")),
              std::vector<std::string>{});
  }
}

TEST(ConfigPrinter, DifferenceNamesKeysAndValues) {
  const Config a = parse_config("optim: {lr: 0.001}\n", "a");
  const Config b = parse_config(
      "optim: {lr: 0.0003}\nmodel: {hidden_size: 64}\n"
      "data: {sources: [{path: x, kind: text}]}\n",
      "b");
  EXPECT_EQ(config_difference(a, b),
            (std::vector<std::string>{"model.hidden_size: (not set) -> 64",
                                      "data.sources: [] -> [{path: x, kind: text, weight: 1.0, hash: \"\"}]",
                                      "optim.lr: 0.001 -> 3.0e-04"}));
}

TEST(ConfigReference, CoversEveryKey) {
  const std::string page = config_reference_markdown();
  const nlohmann::ordered_json schema = config_json_schema();
  const nlohmann::ordered_json config = config_to_json(parse_config("", "c.yaml"));
  EXPECT_FALSE(schema["additionalProperties"]);
  int keys = 0;
  for (const auto& group : config.items()) {
    for (const auto& key : group.value().items()) {
      ++keys;
      EXPECT_NE(page.find("| `" + group.key() + "." + key.key() + "` |"), page.npos) << key.key();
      const auto& entry = schema["properties"][group.key()]["properties"][key.key()];
      EXPECT_EQ(entry["default"], key.value()) << key.key();
      EXPECT_TRUE(entry["description"].is_string()) << key.key();
    }
  }
  EXPECT_GT(keys, 45);
  EXPECT_NE(page.find("`model.num_experts_per_tok`"), page.npos);
  const auto& groups = schema["properties"];
  EXPECT_EQ(groups["run"]["properties"]["device"]["enum"],
            nlohmann::ordered_json::parse(R"(["cpu", "cuda"])"));
  EXPECT_EQ(
      groups["optim"]["properties"]["betas"]["items"],
      nlohmann::ordered_json::parse(R"({"type": "number", "minimum": 0, "exclusiveMaximum": 1})"));
  EXPECT_EQ(groups["moe"]["properties"]["aux_coef"]["anyOf"],
            nlohmann::ordered_json::parse(R"([{"minimum": 0}, {"const": -1}])"));
  EXPECT_EQ(groups["data"]["properties"]["sources"]["items"]["required"],
            nlohmann::ordered_json::parse(R"(["path", "kind"])"));
  EXPECT_EQ(groups["model"]["properties"]["sliding_window"]["anyOf"].size(), 2u);
}

}  // namespace
}  // namespace maniple

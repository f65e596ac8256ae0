#include <yaml-cpp/anchor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "core/config_schema.h"
#include "core/config_table.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/text.h"

namespace maniple {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;        // of free-form values; a cyclic alias ends here
constexpr int kMaxValues = 100'000;  // and a cascade of aliases here

// ---------------------------------------------------------------------------------------------
// Scalars, by the YAML 1.2 core schema

bool is_plain(const YAML::Node& node) { return node.IsScalar() && node.Tag() == "?"; }
bool is_null(const YAML::Node& node) {
  return !node.IsDefined() || node.IsNull() ||
         (is_plain(node) &&
          (node.Scalar().empty() || node.Scalar() == "~" || node.Scalar() == "null" ||
           node.Scalar() == "Null" || node.Scalar() == "NULL"));
}

std::optional<bool> to_bool(const YAML::Node& node) {
  if (!is_plain(node)) return {};
  const std::string& s = node.Scalar();
  if (s == "true" || s == "True" || s == "TRUE") return true;
  if (s == "false" || s == "False" || s == "FALSE") return false;
  return {};
}

enum class Parse { kOk, kNotANumber, kOutOfRange };

std::string_view without_plus(const std::string& s) {
  const bool plus = s.size() > 1 && s[0] == '+' && s[1] != '-';
  return std::string_view(s).substr(plus);
}

template <typename Integer>
Parse to_integer(const YAML::Node& node, Integer& value) {
  if (!is_plain(node)) return Parse::kNotANumber;
  const std::string_view s = without_plus(node.Scalar());
  if (s.empty() || s.find_first_not_of("0123456789", s[0] == '-') != s.npos || s == "-") {
    return Parse::kNotANumber;
  }
  if (std::is_unsigned_v<Integer> && s[0] == '-') return Parse::kOutOfRange;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  return error == std::errc() ? Parse::kOk : Parse::kOutOfRange;
}

Parse to_double(const YAML::Node& node, double& value) {
  if (!is_plain(node)) return Parse::kNotANumber;
  static const std::set<std::string> non_finite = {".inf", "+.inf", "-.inf", ".nan"};
  if (non_finite.contains(node.Scalar())) return Parse::kOutOfRange;
  const std::string_view s = without_plus(node.Scalar());
  if (s.find_first_not_of("0123456789+-.eE") != s.npos) return Parse::kNotANumber;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error == std::errc::invalid_argument || end != s.data() + s.size()) {
    return Parse::kNotANumber;
  }
  return error == std::errc() ? Parse::kOk : Parse::kOutOfRange;
}

std::string shown(const YAML::Node& node) {
  if (is_null(node)) return "nothing (null)";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a map";
  if (!is_plain(node)) return fmt::format("the text \"{}\"", one_line(node.Scalar(), 80));
  return fmt::format("'{}'", one_line(node.Scalar(), 80));
}

std::string bounds(const Rule& rule) {
  std::string text;
  if (std::isfinite(rule.min)) {
    text = fmt::format("{} {}", rule.above_min ? "above" : "at least", rule.min);
  }
  if (std::isfinite(rule.max)) {
    text += fmt::format("{}{} {}", text.empty() ? "" : " and ",
                        rule.below_max ? "below" : "at most", rule.max);
  }
  if (rule.or_value) text += fmt::format(", or {}", *rule.or_value);
  return text;
}

bool within(const Rule& rule, double value) {
  if (rule.or_value && value == *rule.or_value) return true;
  return (rule.above_min ? value > rule.min : value >= rule.min) &&
         (rule.below_max ? value < rule.max : value <= rule.max);
}

// All names, "group.key", in the order of the table.
std::vector<std::string> all_keys() {
  std::vector<std::string> names;
  const Config config;
  describe(config, [&](const Key& key, const auto&) {
    if (key.name != "model.*") return names.push_back(key.name);
    for (const ModelField& field : model_fields()) names.push_back(field.key.name);
  });
  return names;
}

template <typename List>
bool has(const List& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

// What to write instead of the unknown `name` ("group.key").
std::string suggestion(const std::string& name) {
  const std::vector<std::string> keys = all_keys();
  std::vector<std::string> siblings;
  for (const std::string& key : keys) {
    if (leaf_of(key) == leaf_of(name)) return fmt::format("did you mean '{}'?", key);
    if (group_of(key) == group_of(name)) siblings.push_back(leaf_of(key));
  }
  std::string nearest = nearest_name(leaf_of(name), siblings);
  if (!nearest.empty()) return fmt::format("did you mean '{}.{}'?", group_of(name), nearest);
  nearest = nearest_name(name, keys);
  if (!nearest.empty()) return fmt::format("did you mean '{}'?", nearest);
  return fmt::format("the keys of {} are {}", group_of(name), fmt::join(siblings, ", "));
}

// ---------------------------------------------------------------------------------------------

// Reads one file or one override into the config and remembers where each key was set.
class Reader {
 public:
  Reader(Config& config, std::map<std::string, std::string>& set_at, std::string source,
         bool is_override)
      : config_(config), set_at_(set_at), source_(std::move(source)), is_override_(is_override) {}

  void read_root(const YAML::Node& root) {
    if (is_null(root)) return;
    if (!root.IsMap()) {
      fail(root, "config", "found " + shown(root), "a config is a map of groups",
           "write 'group:' with indented 'key: value' lines");
    }
    each_entry(root, "",
               [&](const std::string& name, const YAML::Node& key, const YAML::Node& value) {
                 read_group(name, key, value);
               });
  }

  // One override: `name` is "group" or "group.key".
  void read_override(const std::string& name, const YAML::Node& value) {
    const size_t dot = name.find('.');
    if (dot == name.npos) return read_group(name, value, value);
    const std::string group = name.substr(0, dot);
    check_group(group, value, value);
    read_value(name, value, value);
  }

 private:
  std::string place(const YAML::Node& node) const {
    const YAML::Mark mark = node.Mark();
    if (is_override_ || mark.line < 0) return source_;
    return fmt::format("{}:{}:{}", source_, mark.line + 1, mark.column + 1);
  }

  [[noreturn]] void fail(const YAML::Node& at, const std::string& key, const std::string& what,
                         const std::string& rule, const std::string& fix = "") const {
    throw ConfigError(one_line(
        fmt::format("{}: {}: {}; {}{}{}", place(at), key, what, rule, fix.empty() ? "" : "; ", fix),
        4000));
  }

  // Calls `use(name, key node, value node)` for the entries of a map, whose keys must be different
  // texts: yaml-cpp keeps duplicates silently.
  template <typename Use>
  void each_entry(const YAML::Node& map, const std::string& prefix, Use&& use) const {
    std::map<std::string, std::string> seen;
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) {
        fail(entry.first, prefix.empty() ? "config" : prefix,
             "found " + shown(entry.first) + " as a key", "keys are names");
      }
      const std::string& name = entry.first.Scalar();
      const std::string full = prefix.empty() ? name : prefix + "." + name;
      const auto [before, is_new] = seen.emplace(name, place(entry.first));
      if (!is_new) {
        fail(entry.first, full, "duplicate key, first given at " + before->second,
             "a key is given once", "remove one of the two");
      }
      use(full, entry.first, entry.second);
    }
  }

  void check_group(const std::string& name, const YAML::Node& key, const YAML::Node& value) const {
    if (has(later_groups(), name)) {
      fail(key, name, "not supported by this build", "its keys would have no effect",
           "remove them");
    }
    std::vector<std::string> groups, leaves;
    for (const std::string& full : all_keys()) {
      if (groups.empty() || groups.back() != group_of(full)) groups.push_back(group_of(full));
    }
    if (has(groups, name)) return;
    std::string fix;
    for (const std::string& full : all_keys()) {
      if (fix.empty() && leaf_of(full) == name) fix = full;
    }
    if (fix.empty() && name.find('.') != name.npos) {
      fail(key, name, "unknown key", "dotted names are for overrides; in a file write nested keys",
           fmt::format("write '{}:' with '{}' indented below", group_of(name),
                       name.substr(name.find('.') + 1)));
    }
    if (fix.empty()) fix = nearest_name(name, groups);
    if (fix.empty() && !value.IsMap()) fix = nearest_name(name, all_keys());
    fail(key, name, "unknown key", fmt::format("the groups are {}", fmt::join(groups, ", ")),
         fix.empty() ? "" : fmt::format("did you mean '{}'?", fix));
  }

  void read_group(const std::string& name, const YAML::Node& key, const YAML::Node& value) {
    check_group(name, key, value);
    if (is_null(value)) return;
    if (!value.IsMap()) {
      fail(value, name, "found " + shown(value), "a group is a map of keys",
           fmt::format("indent the keys of {} below it", name));
    }
    each_entry(value, name,
               [&](const std::string& full, const YAML::Node& at, const YAML::Node& node) {
                 read_value(full, at, node);
               });
  }

  void read_value(const std::string& name, const YAML::Node& at, const YAML::Node& value) {
    if (has(later_keys(), name)) {
      fail(at, name, "not supported by this build", "the key would have no effect", "remove it");
    }
    bool found = false;
    describe(config_, [&](const Key& key, auto& member) {
      if (key.name != name || name == "model.*") return;
      read(key, value, at, member);
      found = true;
    });
    for (const ModelField& field : model_fields()) {
      if (field.key.name != name) continue;
      config_.model.overrides[leaf_of(name)] = read_field(field, value, at);
      found = true;
    }
    if (!found) {
      fail(at, name, "unknown key", "every key must be one of the reference", suggestion(name));
    }
    set_at_[name] = place(at);
  }

  // -------------------------------------------------------------------------------------------
  // Values by type. `at` is the node to point at when the value is null, which has no place.

  [[noreturn]] void wrong_type(const Key& key, const YAML::Node& node, const YAML::Node& at,
                               const std::string& wanted, const std::string& fix = "") const {
    fail(is_null(node) ? at : node, key.name, "found " + shown(node), "must be " + wanted, fix);
  }

  void check_bounds(const Key& key, const YAML::Node& node, double value) const {
    if (within(key.rule, value)) return;
    fail(node, key.name, "found " + shown(node) + ", out of range", "must be " + bounds(key.rule));
  }

  template <typename Integer>
  void read_integer(const Key& key, const YAML::Node& node, const YAML::Node& at,
                    Integer& member) const {
    double number = 0;
    switch (to_integer(node, member)) {
      case Parse::kOk:
        return check_bounds(key, node, static_cast<double>(member));
      case Parse::kOutOfRange:
        fail(node, key.name, "found " + shown(node) + ", out of range",
             fmt::format(
                 "must be from {} to {}",
                 std::max(key.rule.min, static_cast<double>(std::numeric_limits<Integer>::min())),
                 std::numeric_limits<Integer>::max()));
      case Parse::kNotANumber:
        const bool whole = to_double(node, number) == Parse::kOk && std::abs(number) < 1e15 &&
                           number == std::floor(number);
        wrong_type(key, node, at, "an integer",
                   whole ? fmt::format("write {}", static_cast<int64_t>(number)) : "");
    }
  }
  void read(const Key& key, const YAML::Node& node, const YAML::Node& at, int64_t& member) const {
    read_integer(key, node, at, member);
  }
  void read(const Key& key, const YAML::Node& node, const YAML::Node& at, uint64_t& member) const {
    read_integer(key, node, at, member);
  }

  void read(const Key& key, const YAML::Node& node, const YAML::Node& at, double& member) const {
    switch (to_double(node, member)) {
      case Parse::kOk:
        return check_bounds(key, node, member);
      case Parse::kOutOfRange:
        fail(node, key.name, "found " + shown(node) + ", out of range",
             "must be a finite number that a double can hold");
      case Parse::kNotANumber:
        wrong_type(key, node, at, "a number",
                   node.IsScalar() && !is_plain(node) ? "remove the quotes" : "");
    }
  }

  void read(const Key& key, const YAML::Node& node, const YAML::Node& at, bool& member) const {
    const std::optional<bool> value = to_bool(node);
    if (!value) wrong_type(key, node, at, "true or false");
    member = *value;
  }

  void read(const Key& key, const YAML::Node& node, const YAML::Node& at,
            std::string& member) const {
    const Rule& rule = key.rule;
    if (is_null(node) || !node.IsScalar()) {
      wrong_type(key, node, at, "a text",
                 rule.words.empty() ? "write '' for an empty one"
                                    : fmt::format("one of {}", fmt::join(rule.words, ", ")));
    }
    const std::string& text = node.Scalar();
    if (has(rule.later, text)) {
      fail(node, key.name, fmt::format("'{}' is not supported by this build", text),
           fmt::format("must be one of {}", fmt::join(rule.words, ", ")));
    }
    if (!rule.words.empty() && !has(rule.words, text)) {
      const std::string nearest = nearest_name(text, rule.words);
      fail(node, key.name, "found " + shown(node),
           fmt::format("must be one of {}", fmt::join(rule.words, ", ")),
           nearest.empty() ? "" : fmt::format("did you mean '{}'?", nearest));
    }
    if (text.find('\0') != text.npos) {
      fail(node, key.name, "found " + shown(node), "a text has no zero bytes");
    }
    if (rule.non_empty && text.empty()) {
      fail(node, key.name, "found an empty text", "must not be empty");
    }
    member = text;
  }

  template <typename T>
  void read(const Key& key, const YAML::Node& node, const YAML::Node& at,
            std::vector<T>& member) const {
    const auto& count = key.rule.count;
    const std::string wanted = count ? fmt::format("a list of {} values", *count) : "a list";
    if (!node.IsSequence()) wrong_type(key, node, at, wanted);
    if (count && node.size() != *count) {
      fail(node, key.name, fmt::format("found a list of {}", node.size()), "must be " + wanted);
    }
    if (node.size() > kMaxValues) {
      fail(node, key.name, fmt::format("found a list of {}", node.size()),
           fmt::format("lists have at most {} values", kMaxValues));
    }
    std::vector<T> values(node.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const Key element{fmt::format("{}[{}]", key.name, i), key.rule, key.help};
      const YAML::Node item = node[i];
      read(element, item, is_null(item) ? node : item, values[i]);
    }
    member = std::move(values);
  }

  void read(const Key& key, const YAML::Node& node, const YAML::Node& at,
            SourceConfig& member) const {
    if (!node.IsMap()) {
      wrong_type(key, node, at, "a map with path and kind", "write {path: corpus.txt, kind: text}");
    }
    std::set<std::string> given;
    each_entry(node, key.name,
               [&](const std::string& full, const YAML::Node& name, const YAML::Node& value) {
                 std::vector<std::string> keys;
                 bool found = false;
                 describe_source(member, [&](const Key& part, auto& part_member) {
                   keys.push_back(part.name);
                   if (part.name != name.Scalar()) return;
                   read(Key{full, part.rule, part.help}, value, name, part_member);
                   found = true;
                 });
                 if (!found) {
                   const std::string nearest = nearest_name(name.Scalar(), keys);
                   fail(name, full, "unknown key",
                        fmt::format("a source has {}", fmt::join(keys, ", ")),
                        nearest.empty() ? "" : fmt::format("did you mean '{}'?", nearest));
                 }
                 given.insert(name.Scalar());
               });
    for (const char* needed : {"path", "kind"}) {
      if (!given.contains(needed)) {
        fail(node, key.name, fmt::format("no {}", needed), "a source needs path and kind",
             "write {path: corpus.txt, kind: text}");
      }
    }
  }

  // The table's "model.*" stands for the fields, which read_field reads.
  void read(const Key&, const YAML::Node&, const YAML::Node&, Json&) const {}

  template <typename T>
  Json read_as(const Key& key, const YAML::Node& node, const YAML::Node& at) const {
    T value{};
    read(key, node, at, value);
    return value;
  }

  Json read_field(const ModelField& field, const YAML::Node& node, const YAML::Node& at) const {
    if (is_null(node) && field.nullable) return nullptr;
    switch (field.type) {
      case FieldType::kInteger:
        return read_as<int64_t>(field.key, node, at);
      case FieldType::kNumber:
        return read_as<double>(field.key, node, at);
      case FieldType::kBool:
        return read_as<bool>(field.key, node, at);
      case FieldType::kText:
        return read_as<std::string>(field.key, node, at);
      case FieldType::kIntegers:
        return read_as<std::vector<int64_t>>(field.key, node, at);
      case FieldType::kTexts:
        return read_as<std::vector<std::string>>(field.key, node, at);
      case FieldType::kObject:
        break;
    }
    if (!node.IsMap()) wrong_type(field.key, node, at, "a map");
    int budget = kMaxValues;
    return read_free(field.key.name, node, 0, budget);
  }

  // A value without a schema, typed by the YAML core schema.
  Json read_free(const std::string& name, const YAML::Node& node, int depth, int& budget) const {
    if (depth > kMaxDepth || --budget < 0) {
      fail(node, name, "nested too deeply or too large",
           fmt::format("at most {} levels and {} values", kMaxDepth, kMaxValues));
    }
    if (node.IsMap()) {
      Json object = Json::object();
      each_entry(node, name,
                 [&](const std::string& full, const YAML::Node& key, const YAML::Node& value) {
                   object[key.Scalar()] = read_free(full, value, depth + 1, budget);
                 });
      return object;
    }
    if (node.IsSequence()) {
      Json list = Json::array();
      for (const YAML::Node& item : node) list.push_back(read_free(name, item, depth + 1, budget));
      return list;
    }
    if (is_null(node)) return nullptr;
    if (const std::optional<bool> value = to_bool(node)) return *value;
    int64_t integer = 0;
    if (to_integer(node, integer) == Parse::kOk) return integer;
    double number = 0;
    const Parse parsed = to_double(node, number);
    if (parsed == Parse::kOk) return number;
    if (parsed == Parse::kOutOfRange) {
      fail(node, name, "found " + shown(node) + ", out of range", "must be a finite number");
    }
    return node.Scalar();
  }

  Config& config_;
  std::map<std::string, std::string>& set_at_;
  std::string source_;
  bool is_override_;
};

// ---------------------------------------------------------------------------------------------
// Rules between keys

class CrossCheck {
 public:
  CrossCheck(const Config& config, const std::map<std::string, std::string>& set_at,
             std::string name)
      : c(config), set_at_(set_at), name_(std::move(name)) {}

  void run() const {
    require(c.model.preset.empty() || c.model.hf_config.empty(),
            {"model.hf_config", "model.preset"},
            fmt::format("both preset '{}' and hf_config '{}' are given", c.model.preset,
                        c.model.hf_config),
            "exactly one says what the model is; remove one (or override it with '')");
    check_batch();
    check_optim();
    require(c.eval.every == 0 || c.data.validation > 0, {"eval.every", "data.validation"},
            fmt::format("eval.every is {}, data.validation is 0", c.eval.every),
            "an evaluation needs held-out rows; set data.validation above 0 or eval.every to 0");
    if (c.objective.kind == "distill") check_distill();
  }

 private:
  void check_distill() const {
    const DistillConfig& d = c.distill;
    require(!d.store.empty() || !d.teacher.empty(), {"objective.kind"},
            "distill without a teacher", "set distill.store or distill.teacher");
    require(d.variant != "full" || d.store.empty(), {"distill.variant", "distill.store"},
            "variant full with a store",
            "a store holds few ids per token; set distill.store='' for a teacher inside the step, or "
            "another distill.variant");
    require(d.temperature == 1 || d.variant == "full" || d.variant.starts_with("topk"),
            {"distill.temperature", "distill.variant"},
            fmt::format("temperature {} with variant {}", format_double(d.temperature), d.variant),
            "sampled targets are drawn and learned at temperature 1; set distill.temperature=1");
  }

  void check_batch() const {
    const BatchConfig& b = c.batch;
    const int64_t slices = c.parallel.slices;
    require(b.units == 0 || b.units >= slices, {"batch.units", "parallel.slices"},
            fmt::format("{} units for {} slices", b.units, slices),
            "every slice needs a unit: batch.units >= parallel.slices; raise batch.units");
    require(b.rows >= slices, {"batch.rows", "parallel.slices"},
            fmt::format("{} rows for {} slices", b.rows, slices),
            "every slice needs a row: batch.rows >= parallel.slices; raise batch.rows");
    const int64_t units = std::max<int64_t>(b.units, 1);
    // The mesh's inner_dp multiplies the divisor further.
    require(
        b.rows / units % b.micro_batch_rows == 0 && b.rows % units == 0,
        {"batch.units", "batch.micro_batch_rows", "batch.rows"},
        fmt::format("{} rows in {} units of rounds of at least {} rows", b.rows,
                    b.units == 0 ? "any number of" : std::to_string(b.units), b.micro_batch_rows),
        "batch.rows must be divisible by batch.units x batch.micro_batch_rows");
  }

  void check_optim() const {
    const OptimConfig& o = c.optim;
    require(o.min_lr <= o.lr, {"optim.min_lr", "optim.lr"},
            fmt::format("min_lr {} is above lr {}", format_double(o.min_lr), format_double(o.lr)),
            "the decay ends at or below the peak; lower optim.min_lr");
    require(o.warmup_steps <= c.train.steps, {"optim.warmup_steps", "train.steps"},
            fmt::format("{} warm-up steps in {} steps", o.warmup_steps, c.train.steps),
            "optim.warmup_steps <= train.steps; shorten the warm-up");
    require(o.schedule != "wsd" || o.decay_steps <= c.train.steps - o.warmup_steps,
            {"optim.decay_steps", "optim.warmup_steps", "train.steps"},
            fmt::format("{} warm-up and {} decay steps in {} steps", o.warmup_steps, o.decay_steps,
                        c.train.steps),
            "optim.warmup_steps + optim.decay_steps <= train.steps; shorten one");
  }

  // Blames the first of `keys` that was given.
  void require(bool holds, std::initializer_list<const char*> keys, const std::string& what,
               const std::string& rule) const {
    if (holds) return;
    std::string key = *keys.begin(), where = name_;
    for (const char* candidate : keys) {
      const auto at = set_at_.find(candidate);
      if (at == set_at_.end()) continue;
      key = candidate, where = at->second;
      break;
    }
    throw ConfigError(one_line(fmt::format("{}: {}: {}; {}", where, key, what, rule), 4000));
  }

  const Config& c;
  const std::map<std::string, std::string>& set_at_;
  std::string name_;
};

// Where documents start, and nothing else.
class DocumentStarts : public YAML::EventHandler {
 public:
  std::vector<YAML::Mark> marks;
  void OnDocumentStart(const YAML::Mark& mark) override { marks.push_back(mark); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

YAML::Node parse_yaml(const std::string& text, const std::string& source, bool is_override) {
  try {
    // Not YAML::LoadAll: from a stray comma at the top level yaml-cpp 0.7 makes documents for ever.
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DocumentStarts starts;
    while (starts.marks.size() < 2 && parser.HandleNextDocument(starts)) {
    }
    const std::vector<YAML::Mark>& documents = starts.marks;
    if (documents.size() > 1) {
      const auto at = static_cast<size_t>(std::max(0, documents[1].pos));
      if (at < text.size() && text[at] == ',')
        throw YAML::ParserException(documents[1], "a comma outside of brackets");
      throw ConfigError(fmt::format(
          "{}{}: config: found several YAML documents; a config is one; remove the '---' lines",
          source,
          is_override || documents[1].line < 0
              ? ""
              : fmt::format(":{}:{}", documents[1].line + 1, documents[1].column + 1)));
    }
    return documents.empty() ? YAML::Node() : YAML::Load(text);
  } catch (const YAML::Exception& e) {
    const std::string place =
        is_override || e.mark.line < 0
            ? source
            : fmt::format("{}:{}:{}", source, e.mark.line + 1, e.mark.column + 1);
    throw ConfigError(one_line(
        fmt::format(
            "{}: config: YAML syntax error: {}; the text must be YAML; check brackets, quotes and "
            "indentation before this place",
            place, e.msg),
        4000));
  }
}

}  // namespace

Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides) {
  Config config;
  std::map<std::string, std::string> set_at;
  std::string reading = one_line(name);
  try {
    Reader(config, set_at, reading, false).read_root(parse_yaml(text, reading, false));
    for (const std::string& item : overrides) {
      reading = fmt::format("override '{}'", one_line(item));
      const size_t equals = item.find('=');
      if (equals == item.npos || equals == 0) {
        throw ConfigError(fmt::format(
            "{}: config: no key and value; an override is group.key=value; write optim.lr=3e-4",
            reading));
      }
      Reader(config, set_at, reading, true)
          .read_override(item.substr(0, equals),
                         parse_yaml(item.substr(equals + 1), reading, true));
    }
  } catch (const YAML::Exception& e) {
    throw ConfigError(
        one_line(fmt::format("{}: config: {}; the text must be YAML", reading, e.msg)));
  }
  CrossCheck(config, set_at, one_line(name)).run();
  if (config.model.preset.empty() && config.model.hf_config.empty()) config.model.preset = "house";
  return config;
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_config(read_file(path, "config"), path, overrides);
}

}  // namespace maniple

#include "core/config_schema.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

#include "core/config_table.h"
#include "core/text.h"

namespace maniple {
namespace {

using OrderedJson = nlohmann::ordered_json;

template <typename T>
OrderedJson to_json(const T& value) {
  return value;
}
OrderedJson to_json(const std::vector<SourceConfig>& sources) {
  OrderedJson list = OrderedJson::array();
  for (const SourceConfig& source : sources) {
    OrderedJson object;
    describe_source(source, [&](const Key& key, const auto& member) { object[key.name] = member; });
    list.push_back(object);
  }
  return list;
}

// Calls `use(name, value)` for every key that has a value.
template <typename Use>
void each_value(const Config& config, Use&& use) {
  describe(config, [&](const Key& key, const auto& member) {
    if (key.name != "model.*") return use(key.name, to_json(member));
    for (const ModelField& field : model_fields()) {
      const auto found = config.model.overrides.find(leaf_of(field.key.name));
      if (found != config.model.overrides.end()) use(field.key.name, OrderedJson(*found));
    }
  });
}

// Plain where every YAML reader takes the text for a text, else in double quotes.
std::string yaml_text(const std::string& text) {
  const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
  const std::string words = " null true false yes no on off y n ";
  std::string lower = text;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool starts_well =
      !text.empty() && (std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '/' ||
                        text.starts_with("./") || text.starts_with("../"));
  if (starts_well && text.find_first_not_of(plain) == text.npos &&
      words.find(" " + lower + " ") == words.npos) {
    return text;
  }
  return OrderedJson(text).dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

// In flow style, on one line.
std::string yaml_value(const OrderedJson& value) {
  if (value.is_string()) return yaml_text(value.get<std::string>());
  if (value.is_number_float()) return format_double(value.get<double>());
  if (!value.is_structured()) return value.dump();
  std::vector<std::string> items;
  for (const auto& item : value.items()) {
    const std::string name = value.is_object() ? yaml_text(item.key()) + ": " : "";
    items.push_back(name + yaml_value(item.value()));
  }
  return value.is_object() ? fmt::format("{{{}}}", fmt::join(items, ", "))
                           : fmt::format("[{}]", fmt::join(items, ", "));
}

// ---------------------------------------------------------------------------------------------
// Reference and schema

template <typename T>
std::string type_name(const T&) {
  if constexpr (std::is_same_v<T, bool>)
    return "boolean";
  else if constexpr (std::is_integral_v<T>)
    return "integer";
  else if constexpr (std::is_same_v<T, double>)
    return "number";
  else if constexpr (std::is_same_v<T, std::string>)
    return "string";
  else
    return "array";
}

OrderedJson bounded(OrderedJson schema, const Rule& rule) {
  // JSON Schema counts 1.0 and 1 as the same number; whole bounds read better as integers.
  const auto number = [](double x) -> OrderedJson {
    return x == std::floor(x) ? OrderedJson(static_cast<int64_t>(x)) : OrderedJson(x);
  };
  OrderedJson limits = OrderedJson::object();
  if (std::isfinite(rule.min)) {
    limits[rule.above_min ? "exclusiveMinimum" : "minimum"] = number(rule.min);
  }
  if (std::isfinite(rule.max)) {
    limits[rule.below_max ? "exclusiveMaximum" : "maximum"] = number(rule.max);
  }
  if (rule.or_value) {
    schema["anyOf"] = OrderedJson::array({limits, OrderedJson{{"const", number(*rule.or_value)}}});
  } else {
    schema.update(limits);
  }
  if (!rule.words.empty()) schema["enum"] = rule.words;
  if (rule.non_empty) schema["minLength"] = 1;
  return schema;
}

OrderedJson object_schema(OrderedJson properties) {
  return {
      {"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
}

OrderedJson source_schema() {
  OrderedJson properties;
  const SourceConfig source;
  describe_source(source, [&](const Key& key, const auto& member) {
    properties[key.name] =
        bounded({{"type", type_name(member)}, {"description", key.help}}, key.rule);
  });
  OrderedJson schema = object_schema(properties);
  schema["required"] = {"path", "kind"};
  return schema;
}

OrderedJson list_schema(OrderedJson items, const Rule& rule) {
  OrderedJson schema = {{"type", "array"}, {"items", std::move(items)}};
  if (rule.count) schema["minItems"] = schema["maxItems"] = *rule.count;
  return schema;
}

template <typename T>
OrderedJson value_schema(const Key& key, const T& member) {
  if constexpr (std::is_same_v<T, std::vector<SourceConfig>>) {
    return list_schema(source_schema(), key.rule);
  } else if constexpr (std::is_same_v<T, std::vector<double>>) {
    return list_schema(bounded({{"type", "number"}}, key.rule), key.rule);
  } else {
    return bounded({{"type", type_name(member)}}, key.rule);
  }
}

std::string field_type_name(FieldType type) {
  switch (type) {
    case FieldType::kInteger:
      return "integer";
    case FieldType::kNumber:
      return "number";
    case FieldType::kBool:
      return "boolean";
    case FieldType::kText:
      return "string";
    case FieldType::kIntegers:
      return "integer";
    case FieldType::kTexts:
      return "string";
    case FieldType::kObject:
      return "object";
  }
  return "";
}

bool is_list(FieldType type) { return type == FieldType::kIntegers || type == FieldType::kTexts; }

OrderedJson field_schema(const ModelField& field) {
  OrderedJson schema = bounded({{"type", field_type_name(field.type)}}, field.key.rule);
  if (is_list(field.type)) schema = list_schema(schema, field.key.rule);
  if (field.nullable) schema = {{"anyOf", {schema, OrderedJson{{"type", "null"}}}}};
  schema["description"] = field.key.help;
  return schema;
}

std::string allowed(const Rule& rule) {
  if (!rule.words.empty()) return fmt::format("{}", fmt::join(rule.words, ", "));
  std::string text;
  if (std::isfinite(rule.min)) text = fmt::format("{} {}", rule.above_min ? ">" : "≥", rule.min);
  if (std::isfinite(rule.max)) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", rule.below_max ? "<" : "≤", rule.max);
  }
  if (rule.or_value) text += fmt::format(", or {}", *rule.or_value);
  return rule.non_empty ? "not empty" : text;
}

Config defaults() {
  Config config;
  config.model.preset = "house";
  return config;
}

}  // namespace

nlohmann::ordered_json config_to_json(const Config& config) {
  OrderedJson root = OrderedJson::object();
  each_value(config, [&](const std::string& name, const OrderedJson& value) {
    root[group_of(name)][leaf_of(name)] = value;
  });
  return root;
}

std::string config_to_yaml(const Config& config) {
  std::string text, group;
  each_value(config, [&](const std::string& name, const OrderedJson& value) {
    if (group != group_of(name)) {
      group = group_of(name);
      text += fmt::format("{}{}:\n", text.empty() ? "" : "\n", group);
    }
    if (name != "data.sources" || value.empty()) {
      text += fmt::format("  {}: {}\n", leaf_of(name), yaml_value(value));
      return;
    }
    text += "  sources:\n";
    for (const OrderedJson& source : value) text += fmt::format("    - {}\n", yaml_value(source));
  });
  return text;
}

std::vector<std::string> config_difference(const Config& a, const Config& b) {
  const std::string absent = "(not set)";
  std::map<std::string, std::string> in_a, in_b;
  each_value(a, [&](const std::string& name, const OrderedJson& v) { in_a[name] = yaml_value(v); });
  each_value(b, [&](const std::string& name, const OrderedJson& v) { in_b[name] = yaml_value(v); });
  const auto find = [&](const auto& values, const std::string& name) {
    const auto found = values.find(name);
    return found == values.end() ? absent : found->second;
  };
  std::vector<std::string> lines;
  const auto compare = [&](const std::string& name) {
    const std::string before = find(in_a, name), after = find(in_b, name);
    if (before != after) lines.push_back(fmt::format("{}: {} -> {}", name, before, after));
  };
  describe(a, [&](const Key& key, const auto&) {
    if (key.name != "model.*") return compare(key.name);
    for (const ModelField& field : model_fields()) compare(field.key.name);
  });
  return lines;
}

std::string config_reference_markdown() {
  std::string text =
      "# Configuration keys\n\nGenerated by `maniple config`. Overrides are written "
      "`group.key=value`.\n";
  std::string group;
  const auto row = [&](const Key& key, const std::string& type, const std::string& value) {
    if (group != group_of(key.name)) {
      group = group_of(key.name);
      text += fmt::format(
          "\n## {}\n\n| key | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- "
          "|\n",
          group);
    }
    text += fmt::format("| `{}` | {} | {} | {} | {} |\n", key.name, type, value, allowed(key.rule),
                        key.help);
  };
  const Config config = defaults();
  describe(config, [&](const Key& key, const auto& member) {
    if (key.name != "model.*") {
      return row(key, type_name(member), "`" + yaml_value(to_json(member)) + "`");
    }
    for (const ModelField& field : model_fields()) {
      std::string type = field_type_name(field.type);
      if (is_list(field.type)) type = "array of " + type;
      if (field.nullable) type += " or null";
      row(field.key, type, "the model's own");
    }
  });
  return text;
}

nlohmann::ordered_json config_json_schema() {
  OrderedJson groups = OrderedJson::object();
  const auto add = [&](const std::string& name, const OrderedJson& schema) {
    OrderedJson& group = groups[group_of(name)];
    if (group.is_null()) group = object_schema(OrderedJson::object());
    group["properties"][leaf_of(name)] = schema;
  };
  const Config config = defaults();
  describe(config, [&](const Key& key, const auto& member) {
    if (key.name == "model.*") {
      for (const ModelField& field : model_fields()) add(field.key.name, field_schema(field));
      return;
    }
    OrderedJson schema = value_schema(key, member);
    schema["description"] = key.help;
    schema["default"] = to_json(member);
    add(key.name, schema);
  });
  // Empty texts count as not given.
  const OrderedJson given = {{"minLength", 1}};
  groups["model"]["not"] = {{"required", {"preset", "hf_config"}},
                            {"properties", {{"preset", given}, {"hf_config", given}}}};
  OrderedJson schema = object_schema(groups);
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  schema["title"] = "Maniple configuration";
  return schema;
}

}  // namespace maniple

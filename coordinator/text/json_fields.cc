#include "coordinator/text/json_fields.h"

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

absl::Status WrongField(const std::string& part, const std::string& key, const char* expected) {
  return absl::InvalidArgumentError(absl::StrCat(part, ": \"", key, "\" is not ", expected));
}

}  // namespace

bool NestsDeeperThan(std::string_view json, int max_depth) {
  int depth = 0;
  bool is_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (is_string) {
      if (c == '\\') ++i;
      if (c == '"') is_string = false;
    } else if (c == '"') {
      is_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

absl::StatusOr<std::string> TypeOf(const nlohmann::json& json, const std::string& part) {
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(part, " is not an object"));
  return StringField(json, "type", part);
}

absl::StatusOr<std::string> StringField(const nlohmann::json& json, const std::string& key,
                                        const std::string& part) {
  auto it = json.find(key);
  if (it == json.end() || !it->is_string()) return WrongField(part, key, "a string");
  return it->get<std::string>();
}

absl::StatusOr<bool> BoolField(const nlohmann::json& json, const std::string& key, bool fallback,
                               const std::string& part) {
  auto it = json.find(key);
  if (it == json.end() || it->is_null()) return fallback;
  if (!it->is_boolean()) return WrongField(part, key, "a boolean");
  return it->get<bool>();
}

absl::StatusOr<int> CountField(const nlohmann::json& json, const std::string& key,
                               const std::string& part) {
  auto it = json.find(key);
  if (it == json.end() || !it->is_number_unsigned() || it->get<uint64_t>() > 1'000'000) {
    return WrongField(part, key, "a count");
  }
  return it->get<int>();
}

absl::StatusOr<const nlohmann::json*> ArrayField(const nlohmann::json& json, const std::string& key,
                                                 const std::string& part) {
  auto it = json.find(key);
  if (it == json.end() || !it->is_array()) return WrongField(part, key, "an array");
  return &*it;
}

absl::StatusOr<PatternField> PatternOf(const nlohmann::json& json, const std::string& part) {
  auto it = json.find("pattern");
  if (it != json.end() && it->is_object() && it->size() == 1 && it->begin()->is_string()) {
    if (it->begin().key() == "String") return PatternField{.text = it->begin()->get<std::string>()};
    if (it->begin().key() == "Regex") {
      return PatternField{.text = it->begin()->get<std::string>(), .is_regex = true};
    }
  }
  return WrongField(part, "pattern", "{\"String\": ...} or {\"Regex\": ...}");
}

absl::Status NotSupported(const std::string& part, const std::string& type,
                          const std::string& supported) {
  return absl::InvalidArgumentError(
      absl::StrCat(part, " \"", type, "\" is not supported; supported are ", supported));
}

}  // namespace plumbline

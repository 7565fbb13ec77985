#include "coordinator/api/request_fields.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "coordinator/api/api_error.h"
#include "coordinator/text/json_fields.h"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;

std::string Describe(const Json& json) {
  return json.is_number_float() ? "a fraction" : absl::StrCat("a JSON ", json.type_name());
}

// Any integer of JSON, also one written as 3.0, within [min, max].
std::optional<int64_t> IntegerOf(const Json& json, int64_t min, int64_t max) {
  if (json.is_number_unsigned()) {
    const uint64_t value = json.get<uint64_t>();
    if (value > static_cast<uint64_t>(max)) return std::nullopt;
    return static_cast<int64_t>(value);
  }
  if (json.is_number_integer()) {
    const int64_t value = json.get<int64_t>();
    if (value < min || value > max) return std::nullopt;
    return value;
  }
  return std::nullopt;
}

constexpr int64_t kInt32Min = std::numeric_limits<int32_t>::min();
constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& what) {
  if (NestsDeeperThan(text, kMaxDepth)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is nested deeper than ", kMaxDepth, " levels"));
  }
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is not valid JSON in UTF-8: ", error.what()));
  }
}

absl::StatusOr<Json> ParseObject(std::string_view body) {
  PL_ASSIGN_OR_RETURN(Json json, ParseJson(body, "the body"));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body must be a JSON object, not ", Describe(json)));
  }
  return json;
}

RequestFields::RequestFields(const Json& object, std::string path)
    : object_(object), path_(std::move(path)) {}

const Json* RequestFields::Find(const std::string& name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void RequestFields::Fail(const std::string& name, const std::string& message) {
  if (status_.ok()) status_ = InvalidField(path_ + name, message);
}

void RequestFields::Read(const std::string& name, bool* value) {
  const Json* json = Find(name);
  if (json == nullptr) return;
  if (!json->is_boolean()) return Fail(name, "must be true or false, not " + Describe(*json));
  *value = json->get<bool>();
}

void RequestFields::Read(const std::string& name, std::optional<std::string>* value) {
  const Json* json = Find(name);
  if (json == nullptr) return;
  if (!json->is_string()) return Fail(name, "must be a string, not " + Describe(*json));
  *value = json->get<std::string>();
}

void RequestFields::Read(const std::string& name, std::string* value) {
  std::optional<std::string> read;
  Read(name, &read);
  if (read) *value = *std::move(read);
}

void RequestFields::Read(const std::string& name, std::optional<int64_t>* value) {
  const Json* json = Find(name);
  if (json == nullptr) return;
  if (!json->is_number_integer()) return Fail(name, "must be an integer, not " + Describe(*json));
  const std::optional<int64_t> read =
      IntegerOf(*json, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  if (!read) return Fail(name, "is too large");
  *value = read;
}

void RequestFields::Read(const std::string& name, std::optional<int32_t>* value) {
  std::optional<int64_t> read;
  Read(name, &read);
  if (!read) return;
  if (*read < kInt32Min || *read > kInt32Max) return Fail(name, "is too large");
  *value = static_cast<int32_t>(*read);
}

void RequestFields::Read(const std::string& name, int32_t* value) {
  std::optional<int32_t> read;
  Read(name, &read);
  if (read) *value = *read;
}

void RequestFields::Read(const std::string& name, float* value) {
  const Json* json = Find(name);
  if (json == nullptr) return;
  if (!json->is_number()) return Fail(name, "must be a number, not " + Describe(*json));
  *value = static_cast<float>(json->get<double>());
}

void RequestFields::ReadStrings(const std::string& name, std::vector<std::string>* values) {
  const Json* json = Find(name);
  if (json == nullptr) return;
  if (json->is_string()) {
    values->push_back(json->get<std::string>());
    return;
  }
  if (!json->is_array()) {
    return Fail(name, "must be a string or a list of strings, not " + Describe(*json));
  }
  for (const Json& item : *json) {
    if (!item.is_string()) return Fail(name, "must hold strings, not " + Describe(item));
    values->push_back(item.get<std::string>());
  }
}

void RequestFields::ReadTokens(const std::string& name, std::vector<int32_t>* values) {
  const Json* json = Find(name);
  if (json == nullptr) return;
  absl::StatusOr<std::vector<int32_t>> tokens = TokensOf(*json, path_ + name);
  if (tokens.ok()) {
    *values = *std::move(tokens);
  } else if (status_.ok()) {
    status_ = tokens.status();
  }
}

void RequestFields::Ignore(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.insert(name);
}

void RequestFields::AcceptOnly(const std::string& name, const Json& neutral) {
  const Json* json = Find(name);
  if (json == nullptr || *json == neutral) return;
  Fail(name, neutral.is_null() ? "is not supported yet"
                               : "is not supported yet with values other than " + neutral.dump());
}

absl::Status RequestFields::Finish() {
  PL_RETURN_IF_ERROR(status_);
  for (const auto& item : object_.items()) {
    if (!item.value().is_null() && !known_.contains(item.key())) {
      return InvalidField(path_ + item.key(), "unknown field");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> TokensOf(const Json& json, const std::string& field) {
  if (!json.is_array()) {
    return InvalidField(field, "must be a list of token ids, not " + Describe(json));
  }
  std::vector<int32_t> tokens;
  tokens.reserve(json.size());
  for (const Json& item : json) {
    const std::optional<int64_t> id =
        item.is_number_integer() ? IntegerOf(item, kInt32Min, kInt32Max) : std::nullopt;
    if (!id) return InvalidField(field, item.dump() + " is not a token id");
    tokens.push_back(static_cast<int32_t>(*id));
  }
  return tokens;
}

}  // namespace plumbline

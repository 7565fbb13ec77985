#include "parallel/json_reader.h"

#include <cmath>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

constexpr int kMaxDepth = 64;

// Deepest nesting of brackets outside strings, whether or not the text is JSON.
int NestingDepth(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view what) {
  if (NestingDepth(text) > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(what), ": JSON is nested deeper than ", kMaxDepth, " levels"));
  }
  nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), nullptr,
                                              /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(what), json.is_discarded() ? ": is not valid JSON" : ": is not a JSON object"));
  }
  return json;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const int64_t size = file.tellg();
  if (size < 0 || size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", size, " bytes; at most ", max_bytes, " are expected"));
  }
  std::string text(size, '\0');
  file.seekg(0);
  if (!file.read(text.data(), size))
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  return text;
}

std::string JsonReader::Name(const char* key) const {
  return path_.empty() ? key : absl::StrCat(path_, ".", key);
}

void JsonReader::Fail(absl::Status status) const { first_error_->Update(status); }

void JsonReader::Invalid(const char* key, std::string_view message) const {
  Fail(absl::InvalidArgumentError(absl::StrCat(Name(key), " ", std::string(message))));
}

void JsonReader::Unsupported(const char* key, std::string_view message) const {
  Fail(absl::UnimplementedError(absl::StrCat(Name(key), " ", std::string(message))));
}

const nlohmann::json* JsonReader::Find(const char* key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

bool JsonReader::Has(const char* key) const { return Find(key) != nullptr; }

int64_t JsonReader::CheckedInt(const nlohmann::json& value, const char* key, IntRange range) const {
  if (!value.is_number_integer()) {
    Invalid(key, absl::StrCat("is a ", value.type_name(), "; an integer is expected"));
    return range.min;
  }
  const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX};
  const int64_t number = too_large ? INT64_MAX : value.get<int64_t>();
  if (number < range.min || number > range.max) {
    Invalid(key,
            absl::StrCat("is ", value.dump(), "; ", range.min, " to ", range.max, " is expected"));
    return range.min;
  }
  return number;
}

int64_t JsonReader::Int(const char* key, IntRange range) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    Invalid(key, "is missing");
    return range.min;
  }
  return CheckedInt(*value, key, range);
}

int64_t JsonReader::IntOr(const char* key, int64_t fallback, IntRange range) const {
  return Has(key) ? Int(key, range) : fallback;
}

double JsonReader::Positive(const char* key) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    Invalid(key, "is missing");
    return 1;
  }
  const double number = value->is_number() ? value->get<double>() : 0;
  if (!std::isfinite(number) || number <= 0) {
    Invalid(key, "is not a positive number");
    return 1;
  }
  return number;
}

double JsonReader::PositiveOr(const char* key, double fallback) const {
  return Has(key) ? Positive(key) : fallback;
}

bool JsonReader::BoolOr(const char* key, bool fallback) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    Invalid(key, "is not true or false");
    return fallback;
  }
  return value->get<bool>();
}

std::string JsonReader::StringOr(const char* key, std::string fallback) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    Invalid(key, "is not a string");
    return fallback;
  }
  return value->get<std::string>();
}

std::vector<int64_t> JsonReader::Ints(const char* key, IntRange range) const {
  std::vector<int64_t> numbers;
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array()) return {CheckedInt(*value, key, range)};
  for (const nlohmann::json& item : *value) numbers.push_back(CheckedInt(item, key, range));
  return numbers;
}

std::vector<std::string> JsonReader::Strings(const char* key) const {
  std::vector<std::string> strings;
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return strings;
  if (!value->is_array()) {
    Invalid(key, "is not a list");
    return strings;
  }
  for (const nlohmann::json& item : *value) {
    if (!item.is_string()) {
      Invalid(key, "holds something that is not a string");
      return strings;
    }
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

JsonReader JsonReader::Object(const char* key) const {
  static const nlohmann::json kEmpty = nlohmann::json::object();
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    Invalid(key, "is missing");
  } else if (!value->is_object()) {
    Invalid(key, "is not an object");
  } else {
    return JsonReader(value, Name(key), first_error_);
  }
  return JsonReader(&kEmpty, Name(key), first_error_);
}

}  // namespace plumbline

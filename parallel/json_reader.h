// JsonReader: typed, bounded access to one object of a JSON file somebody else wrote. The first
// problem is kept in a Status that the readers of one file share, so that a parser reads like a
// list of keys and asks once at the end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace plumbline {

// An object at most 64 levels deep; `what` names the text in errors. INVALID_ARGUMENT otherwise.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view what);

// The whole file. NOT_FOUND, or INVALID_ARGUMENT when it is longer than max_bytes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes);

struct IntRange {
  int64_t min = 0;
  int64_t max = 0;
};

class JsonReader {
 public:
  // path: the object's place in the file, "" for the root. Both pointers outlive the reader.
  JsonReader(const nlohmann::json* object, std::string path, absl::Status* first_error)
      : object_(object), path_(std::move(path)), first_error_(first_error) {}

  bool Has(const char* key) const;  // there, and not null
  // After an error all getters return their fallback, the range's min, 0 or "".
  int64_t Int(const char* key, IntRange range) const;  // required
  int64_t IntOr(const char* key, int64_t fallback, IntRange range) const;
  double Positive(const char* key) const;  // required, finite, > 0
  double PositiveOr(const char* key, double fallback) const;
  bool BoolOr(const char* key, bool fallback) const;
  std::string StringOr(const char* key, std::string fallback) const;
  // A list of whatever IntOr accepts; a single integer counts as a list of one, a missing key as an
  // empty list.
  std::vector<int64_t> Ints(const char* key, IntRange range) const;
  std::vector<std::string> Strings(const char* key) const;
  JsonReader Object(const char* key) const;  // required

  std::string Name(const char* key) const;  // "text_config.head_dim"
  void Fail(absl::Status status) const;     // keeps the first
  void Invalid(const char* key, std::string_view message) const;
  void Unsupported(const char* key, std::string_view message) const;

 private:
  const nlohmann::json* Find(const char* key) const;  // nullptr when missing or null
  int64_t CheckedInt(const nlohmann::json& value, const char* key, IntRange range) const;

  const nlohmann::json* object_;
  std::string path_;
  absl::Status* first_error_;
};

}  // namespace plumbline

// Reading the JSON body of a request: bounded parsing, and fields with types. A field that was not
// read is unknown, and unknown fields are errors: one that changes the meaning of a request must
// never be dropped in silence.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace plumbline {

// JSON of at most 64 levels. `what` names it in errors. INVALID_ARGUMENT says where and what is
// wrong, e.g. bytes that are not UTF-8.
absl::StatusOr<nlohmann::ordered_json> ParseJson(std::string_view text, const std::string& what);
// The same for a request's body, which must be an object.
absl::StatusOr<nlohmann::ordered_json> ParseObject(std::string_view body);

// Readers leave the value as it is when the field is absent or null. The first error wins and
// Finish returns it.
class RequestFields {
 public:
  // The object outlives this. `path` is put before names in errors, e.g. "stream_options.".
  explicit RequestFields(const nlohmann::ordered_json& object, std::string path = "");

  // The field, or nullptr when absent or null.
  const nlohmann::ordered_json* Find(const std::string& name);
  bool Has(const std::string& name) { return Find(name) != nullptr; }

  void Read(const std::string& name, bool* value);
  void Read(const std::string& name, std::string* value);
  void Read(const std::string& name, std::optional<std::string>* value);
  void Read(const std::string& name, int32_t* value);
  void Read(const std::string& name, std::optional<int32_t>* value);
  void Read(const std::string& name, std::optional<int64_t>* value);
  void Read(const std::string& name, float* value);
  // A string or a list of strings.
  void ReadStrings(const std::string& name, std::vector<std::string>* values);
  void ReadTokens(const std::string& name, std::vector<int32_t>* values);

  // Known fields without an effect on the answer.
  void Ignore(std::initializer_list<const char*> names);
  // A field of the interface whose other values are not supported.
  void AcceptOnly(const std::string& name, const nlohmann::ordered_json& neutral);

  void Fail(const std::string& name, const std::string& message);
  bool ok() const { return status_.ok(); }
  // The first error, or the first field that nobody asked for.
  absl::Status Finish();

 private:
  const nlohmann::ordered_json& object_;
  const std::string path_;
  std::set<std::string> known_;
  absl::Status status_;
};

// A list of token ids; the error names `field`. Ids are checked against int32 only.
absl::StatusOr<std::vector<int32_t>> TokensOf(const nlohmann::ordered_json& json,
                                              const std::string& field);

}  // namespace plumbline

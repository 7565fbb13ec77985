// Reading fields of a tokenizer.json part, with errors that name part and field.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

// Whether brackets outside strings nest deeper than `max_depth`, in JSON or what should be. Asked
// before parsing: what costs memory in deep documents is the tree, and whoever walks over it needs
// a stack.
bool NestsDeeperThan(std::string_view json, int max_depth);

// {"type": NAME, ...} -> NAME. `part` names the part in errors, e.g. "normalizer".
absl::StatusOr<std::string> TypeOf(const nlohmann::json& json, const std::string& part);
absl::StatusOr<std::string> StringField(const nlohmann::json& json, const std::string& key,
                                        const std::string& part);
// Absent or null -> `fallback`.
absl::StatusOr<bool> BoolField(const nlohmann::json& json, const std::string& key, bool fallback,
                               const std::string& part);
absl::StatusOr<int> CountField(const nlohmann::json& json, const std::string& key,
                               const std::string& part);
// The array under `key`; never null.
absl::StatusOr<const nlohmann::json*> ArrayField(const nlohmann::json& json, const std::string& key,
                                                 const std::string& part);

// {"pattern": {"String": ...}} or {"pattern": {"Regex": ...}}.
struct PatternField {
  std::string text;
  bool is_regex = false;
};
absl::StatusOr<PatternField> PatternOf(const nlohmann::json& json, const std::string& part);

absl::Status NotSupported(const std::string& part, const std::string& type,
                          const std::string& supported);

}  // namespace plumbline

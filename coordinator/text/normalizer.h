// Normalizer: the "normalizer" of a tokenizer.json. Immutable; thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/regex.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

class Normalizer {
 public:
  // `json` may be null: nothing is changed.
  static absl::StatusOr<Normalizer> Parse(const nlohmann::json& json);

  absl::StatusOr<std::string> Apply(std::string_view text) const;

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kPrepend, kReplace, kStrip };
  struct Stage {
    Kind kind;
    std::string content;         // kPrepend, kReplace
    std::string pattern;         // kReplace by string
    std::optional<Regex> regex;  // kReplace by regex
    bool strip_left = false;
    bool strip_right = false;
  };

  absl::Status AddStages(const nlohmann::json& json);
  static absl::StatusOr<std::string> ApplyStage(const Stage& stage, std::string text);

  std::vector<Stage> stages_;
};

}  // namespace plumbline

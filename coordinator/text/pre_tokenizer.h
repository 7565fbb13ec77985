// PreTokenizer: the "pre_tokenizer" of a tokenizer.json: cuts text into words, which BPE then never
// joins. Immutable; thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/regex.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

struct Word {
  std::string text;
  bool at_start;  // begins where the whole input begins
};

class PreTokenizer {
 public:
  // `json` may be null: the text stays one word.
  static absl::StatusOr<PreTokenizer> Parse(const nlohmann::json& json);

  absl::StatusOr<std::vector<Word>> Apply(Word text) const;

 private:
  enum class Kind { kSplit, kDigits, kByteLevel, kMetaspace };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Stage {
    Kind kind;
    std::optional<Regex> regex;  // kSplit by regex, kByteLevel
    std::string pattern;         // kSplit by string; kMetaspace: what stands for a space
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;                 // kSplit
    bool add_prefix_space = false;       // kByteLevel
    Prepend prepend = Prepend::kAlways;  // kMetaspace
    bool split = true;                   // kMetaspace
  };

  absl::Status AddStages(const nlohmann::json& json);
  absl::Status ReadSplit(const nlohmann::json& json, Stage& stage);
  absl::Status ReadMetaspace(const nlohmann::json& json, Stage& stage);
  static std::vector<TextSpan> Merge(std::vector<TextSpan> spans, Behavior behavior);
  static void AddWords(const Word& word, const std::vector<TextSpan>& spans,
                       std::vector<Word>& words);
  static absl::Status ApplyStage(const Stage& stage, Word word, std::vector<Word>& words);

  std::vector<Stage> stages_;
};

}  // namespace plumbline

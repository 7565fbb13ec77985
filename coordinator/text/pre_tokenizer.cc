#include "coordinator/text/pre_tokenizer.h"

#include <algorithm>

#include "coordinator/text/byte_level.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr char kPart[] = "pre_tokenizer";
// What ByteLevel with use_regex cuts by: GPT-2's own pattern.
constexpr char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::vector<TextSpan> CutByDigits(std::string_view text) {
  std::vector<TextSpan> spans;
  for (size_t pos = 0; pos < text.size();) {
    size_t begin = pos;
    bool numeric = IsNumeric(NextCodePoint(text, pos));
    if (!numeric && !spans.empty() && !spans.back().is_match) {
      spans.back().end = pos;
    } else {
      spans.push_back({begin, pos, numeric});
    }
  }
  return spans;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const nlohmann::json& json) {
  PreTokenizer pre_tokenizer;
  if (!json.is_null()) PL_RETURN_IF_ERROR(pre_tokenizer.AddStages(json));
  return pre_tokenizer;
}

absl::Status PreTokenizer::AddStages(const nlohmann::json& json) {
  PL_ASSIGN_OR_RETURN(std::string type, TypeOf(json, kPart));
  if (type == "Sequence") {
    PL_ASSIGN_OR_RETURN(const nlohmann::json* parts, ArrayField(json, "pretokenizers", kPart));
    for (const nlohmann::json& part : *parts) PL_RETURN_IF_ERROR(AddStages(part));
    return absl::OkStatus();
  }
  Stage stage;
  if (type == "Split") {
    PL_RETURN_IF_ERROR(ReadSplit(json, stage));
  } else if (type == "Digits") {
    stage.kind = Kind::kDigits;
    PL_ASSIGN_OR_RETURN(bool individual, BoolField(json, "individual_digits", false, kPart));
    stage.behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "ByteLevel") {
    stage.kind = Kind::kByteLevel;
    PL_ASSIGN_OR_RETURN(stage.add_prefix_space, BoolField(json, "add_prefix_space", true, kPart));
    PL_ASSIGN_OR_RETURN(bool use_regex, BoolField(json, "use_regex", true, kPart));
    if (use_regex) {
      PL_ASSIGN_OR_RETURN(stage.regex, Regex::Compile(kGpt2Pattern));
    }
  } else if (type == "Metaspace") {
    PL_RETURN_IF_ERROR(ReadMetaspace(json, stage));
  } else {
    return NotSupported(kPart, type, "Sequence, Split, Digits, ByteLevel, Metaspace");
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::Status PreTokenizer::ReadSplit(const nlohmann::json& json, Stage& stage) {
  stage.kind = Kind::kSplit;
  PL_ASSIGN_OR_RETURN(PatternField pattern, PatternOf(json, kPart));
  stage.pattern = pattern.text;
  if (pattern.is_regex) {
    PL_ASSIGN_OR_RETURN(stage.regex, Regex::Compile(pattern.text));
  }
  PL_ASSIGN_OR_RETURN(stage.invert, BoolField(json, "invert", false, kPart));
  PL_ASSIGN_OR_RETURN(std::string behavior, StringField(json, "behavior", kPart));
  if (behavior == "Removed") {
    stage.behavior = Behavior::kRemoved;
  } else if (behavior == "Isolated") {
    stage.behavior = Behavior::kIsolated;
  } else if (behavior == "MergedWithPrevious") {
    stage.behavior = Behavior::kMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    stage.behavior = Behavior::kMergedWithNext;
  } else if (behavior == "Contiguous") {
    stage.behavior = Behavior::kContiguous;
  } else {
    return NotSupported("pre_tokenizer Split behavior", behavior,
                        "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::ReadMetaspace(const nlohmann::json& json, Stage& stage) {
  stage.kind = Kind::kMetaspace;
  PL_ASSIGN_OR_RETURN(stage.pattern, StringField(json, "replacement", kPart));
  PL_ASSIGN_OR_RETURN(stage.split, BoolField(json, "split", true, kPart));
  // Older files say add_prefix_space, newer ones prepend_scheme.
  PL_ASSIGN_OR_RETURN(bool add_prefix_space, BoolField(json, "add_prefix_space", true, kPart));
  std::string scheme = add_prefix_space ? "always" : "never";
  if (json.contains("prepend_scheme")) {
    PL_ASSIGN_OR_RETURN(scheme, StringField(json, "prepend_scheme", kPart));
  }
  if (scheme == "always") {
    stage.prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    stage.prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    stage.prepend = Prepend::kNever;
  } else {
    return NotSupported("pre_tokenizer Metaspace prepend_scheme", scheme, "always, first, never");
  }
  return absl::OkStatus();
}

// Joins neighbouring spans; a span that is_match in the result is one to drop.
std::vector<TextSpan> PreTokenizer::Merge(std::vector<TextSpan> spans, Behavior behavior) {
  if (behavior == Behavior::kRemoved) return spans;
  bool from_back = behavior == Behavior::kMergedWithNext;
  if (from_back) std::reverse(spans.begin(), spans.end());
  std::vector<TextSpan> merged;
  bool previous_match = false;
  for (const TextSpan& span : spans) {
    bool join = false;
    if (behavior == Behavior::kContiguous) join = span.is_match == previous_match;
    if (behavior == Behavior::kMergedWithPrevious || from_back)
      join = span.is_match && !previous_match;
    if (join && !merged.empty()) {
      (from_back ? merged.back().begin : merged.back().end) = from_back ? span.begin : span.end;
    } else {
      merged.push_back({span.begin, span.end, false});
    }
    previous_match = span.is_match;
  }
  if (from_back) std::reverse(merged.begin(), merged.end());
  return merged;
}

void PreTokenizer::AddWords(const Word& word, const std::vector<TextSpan>& spans,
                            std::vector<Word>& words) {
  for (const TextSpan& span : spans) {
    if (span.is_match) continue;
    words.push_back({.text = word.text.substr(span.begin, span.end - span.begin),
                     .at_start = word.at_start && span.begin == 0});
  }
}

absl::Status PreTokenizer::ApplyStage(const Stage& stage, Word word, std::vector<Word>& words) {
  switch (stage.kind) {
    case Kind::kSplit: {
      std::vector<TextSpan> spans;
      if (stage.regex) {
        PL_ASSIGN_OR_RETURN(spans, stage.regex->Cut(word.text));
      } else {
        spans = CutByString(word.text, stage.pattern);
      }
      if (stage.invert) {
        for (TextSpan& span : spans) span.is_match = !span.is_match;
      }
      AddWords(word, Merge(std::move(spans), stage.behavior), words);
      break;
    }
    case Kind::kDigits:
      AddWords(word, Merge(CutByDigits(word.text), stage.behavior), words);
      break;
    case Kind::kByteLevel: {
      if (stage.add_prefix_space && !word.text.starts_with(' ')) word.text.insert(0, " ");
      std::vector<TextSpan> spans = {{0, word.text.size(), false}};
      if (stage.regex) {
        PL_ASSIGN_OR_RETURN(spans, stage.regex->Cut(word.text));
      }
      for (const TextSpan& span : spans) {
        Word& spelled = words.emplace_back();
        spelled.at_start = word.at_start && span.begin == 0;
        AppendByteLevel(std::string_view(word.text).substr(span.begin, span.end - span.begin),
                        spelled.text);
      }
      break;
    }
    case Kind::kMetaspace: {
      word.text = ReplaceAll(word.text, " ", stage.pattern);
      bool prepend =
          stage.prepend == Prepend::kAlways || (stage.prepend == Prepend::kFirst && word.at_start);
      if (prepend && !word.text.starts_with(stage.pattern)) word.text.insert(0, stage.pattern);
      if (!stage.split) {
        words.push_back(std::move(word));
        break;
      }
      AddWords(word, Merge(CutByString(word.text, stage.pattern), Behavior::kMergedWithNext),
               words);
      break;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Word>> PreTokenizer::Apply(Word text) const {
  std::vector<Word> words;
  if (text.text.empty()) return words;
  words.push_back(std::move(text));
  for (const Stage& stage : stages_) {
    std::vector<Word> next;
    next.reserve(words.size());
    for (Word& word : words) PL_RETURN_IF_ERROR(ApplyStage(stage, std::move(word), next));
    words = std::move(next);
  }
  return words;
}

}  // namespace plumbline

#include "coordinator/text/normalizer.h"

#include "coordinator/text/json_fields.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr char kPart[] = "normalizer";

std::string Strip(std::string_view text, bool left, bool right) {
  size_t begin = 0, end = 0;
  bool in_text = false;
  for (size_t pos = 0; pos < text.size();) {
    size_t start = pos;
    if (IsWhiteSpace(NextCodePoint(text, pos))) continue;
    if (!in_text) begin = start;
    in_text = true;
    end = pos;
  }
  if (!in_text) begin = end = left ? text.size() : 0;  // all white
  if (!left) begin = 0;
  if (!right) end = text.size();
  return std::string(text.substr(begin, end - begin));
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::Parse(const nlohmann::json& json) {
  Normalizer normalizer;
  if (!json.is_null()) PL_RETURN_IF_ERROR(normalizer.AddStages(json));
  return normalizer;
}

absl::Status Normalizer::AddStages(const nlohmann::json& json) {
  PL_ASSIGN_OR_RETURN(std::string type, TypeOf(json, kPart));
  if (type == "Sequence") {
    PL_ASSIGN_OR_RETURN(const nlohmann::json* parts, ArrayField(json, "normalizers", kPart));
    for (const nlohmann::json& part : *parts) PL_RETURN_IF_ERROR(AddStages(part));
    return absl::OkStatus();
  }
  Stage stage;
  if (type == "NFC") {
    stage.kind = Kind::kNfc;
  } else if (type == "NFD") {
    stage.kind = Kind::kNfd;
  } else if (type == "NFKC") {
    stage.kind = Kind::kNfkc;
  } else if (type == "NFKD") {
    stage.kind = Kind::kNfkd;
  } else if (type == "Prepend") {
    stage.kind = Kind::kPrepend;
    PL_ASSIGN_OR_RETURN(stage.content, StringField(json, "prepend", kPart));
  } else if (type == "Replace") {
    stage.kind = Kind::kReplace;
    PL_ASSIGN_OR_RETURN(PatternField pattern, PatternOf(json, kPart));
    PL_ASSIGN_OR_RETURN(stage.content, StringField(json, "content", kPart));
    stage.pattern = pattern.text;
    if (pattern.is_regex) {
      PL_ASSIGN_OR_RETURN(stage.regex, Regex::Compile(pattern.text));
    }
  } else if (type == "Strip") {
    stage.kind = Kind::kStrip;
    PL_ASSIGN_OR_RETURN(stage.strip_left, BoolField(json, "strip_left", true, kPart));
    PL_ASSIGN_OR_RETURN(stage.strip_right, BoolField(json, "strip_right", true, kPart));
  } else {
    return NotSupported(kPart, type, "Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip");
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::ApplyStage(const Stage& stage, std::string text) {
  switch (stage.kind) {
    case Kind::kNfc:
      return Normalize(text, NormalForm::kNfc);
    case Kind::kNfd:
      return Normalize(text, NormalForm::kNfd);
    case Kind::kNfkc:
      return Normalize(text, NormalForm::kNfkc);
    case Kind::kNfkd:
      return Normalize(text, NormalForm::kNfkd);
    case Kind::kPrepend:
      return text.empty() ? text : stage.content + text;
    case Kind::kStrip:
      return Strip(text, stage.strip_left, stage.strip_right);
    case Kind::kReplace:
      break;
  }
  std::vector<TextSpan> spans;
  if (stage.regex) {
    PL_ASSIGN_OR_RETURN(spans, stage.regex->Cut(text));
  } else {
    spans = CutByString(text, stage.pattern);
  }
  std::string out;
  out.reserve(text.size());
  for (const TextSpan& span : spans) {
    out += span.is_match ? std::string_view(stage.content)
                         : std::string_view(text).substr(span.begin, span.end - span.begin);
  }
  return out;
}

absl::StatusOr<std::string> Normalizer::Apply(std::string_view text) const {
  std::string result(text);
  for (const Stage& stage : stages_) {
    PL_ASSIGN_OR_RETURN(result, ApplyStage(stage, std::move(result)));
  }
  return result;
}

}  // namespace plumbline

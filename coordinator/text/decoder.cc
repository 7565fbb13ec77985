#include "coordinator/text/decoder.h"

#include <algorithm>

#include "coordinator/text/byte_level.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/regex.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr char kPart[] = "decoder";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// "<0x41>" -> 0x41; -1 for every other token.
int ByteTokenValue(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int high = HexDigit(token[3]), low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// How many times `unit` repeats at the start (or end) of `text`, at most `limit` times.
int CountRepeats(std::string_view text, std::string_view unit, bool at_end, int limit) {
  int count = 0;
  while (count < limit && (at_end ? text.ends_with(unit) : text.starts_with(unit))) {
    at_end ? text.remove_suffix(unit.size()) : text.remove_prefix(unit.size());
    ++count;
  }
  return count;
}

}  // namespace

absl::StatusOr<Decoder> Decoder::Parse(const nlohmann::json& json) {
  Decoder decoder;
  if (json.is_null()) {
    decoder.stages_.push_back({.kind = Kind::kJoinWithSpaces});
    return decoder;
  }
  PL_RETURN_IF_ERROR(decoder.AddStages(json));
  bool fused = false;
  for (Stage& stage : decoder.stages_) {
    stage.fused = fused;
    if (fused && (stage.kind == Kind::kByteFallback || stage.kind == Kind::kMetaspace ||
                  (stage.kind == Kind::kReplace && CountCodePoints(stage.pattern) != 1))) {
      return absl::InvalidArgumentError(
          "decoder: after Fuse or ByteLevel only Strip and a Replace of one character are "
          "supported");
    }
    fused |= stage.kind == Kind::kFuse || stage.kind == Kind::kByteLevel;
  }
  return decoder;
}

absl::Status Decoder::AddStages(const nlohmann::json& json) {
  PL_ASSIGN_OR_RETURN(std::string type, TypeOf(json, kPart));
  if (type == "Sequence") {
    PL_ASSIGN_OR_RETURN(const nlohmann::json* parts, ArrayField(json, "decoders", kPart));
    for (const nlohmann::json& part : *parts) PL_RETURN_IF_ERROR(AddStages(part));
    return absl::OkStatus();
  }
  Stage stage;
  if (type == "ByteLevel") {
    stage.kind = Kind::kByteLevel;
  } else if (type == "ByteFallback") {
    stage.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    stage.kind = Kind::kFuse;
  } else if (type == "Replace") {
    stage.kind = Kind::kReplace;
    PL_ASSIGN_OR_RETURN(PatternField pattern, PatternOf(json, kPart));
    PL_ASSIGN_OR_RETURN(stage.content, StringField(json, "content", kPart));
    if (pattern.is_regex || pattern.text.empty()) {
      return NotSupported("decoder Replace pattern", pattern.text, "plain strings");
    }
    stage.pattern = pattern.text;
  } else if (type == "Strip") {
    stage.kind = Kind::kStrip;
    PL_ASSIGN_OR_RETURN(stage.pattern, StringField(json, "content", kPart));
    PL_ASSIGN_OR_RETURN(stage.start, CountField(json, "start", kPart));
    PL_ASSIGN_OR_RETURN(stage.stop, CountField(json, "stop", kPart));
    if (stage.pattern.empty()) return absl::InvalidArgumentError("decoder: Strip of no character");
  } else if (type == "Metaspace") {
    stage.kind = Kind::kMetaspace;
    PL_ASSIGN_OR_RETURN(stage.pattern, StringField(json, "replacement", kPart));
    PL_ASSIGN_OR_RETURN(bool add_prefix_space, BoolField(json, "add_prefix_space", true, kPart));
    stage.drop_first = add_prefix_space;
    if (json.contains("prepend_scheme")) stage.drop_first = json["prepend_scheme"] != "never";
    if (stage.pattern.empty()) return absl::InvalidArgumentError("decoder: Metaspace of nothing");
  } else {
    return NotSupported(kPart, type,
                        "Sequence, ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace");
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

void Decoder::Push(std::string_view token, State& state, std::string& out) const {
  Feed(0, token, state, out);
}

void Decoder::Feed(size_t index, std::string_view piece, State& state, std::string& out) const {
  if (index == stages_.size()) {
    out += piece;
    return;
  }
  const Stage& stage = stages_[index];
  StageState& seen = state[index];
  bool first = !seen.started;
  seen.started = true;
  switch (stage.kind) {
    case Kind::kFuse:
      Feed(index + 1, piece, state, out);
      return;
    case Kind::kReplace:
      Feed(index + 1, ReplaceAll(piece, stage.pattern, stage.content), state, out);
      return;
    case Kind::kMetaspace:
      Feed(index + 1, ReplaceAll(piece, stage.pattern, first && stage.drop_first ? "" : " "), state,
           out);
      return;
    case Kind::kJoinWithSpaces:
      Feed(index + 1, (first ? "" : " ") + std::string(piece), state, out);
      return;
    case Kind::kByteFallback:
      if (int value = ByteTokenValue(piece); value >= 0) {
        seen.pending += static_cast<char>(value);
        return;
      }
      Flush(index, state, out);
      Feed(index + 1, piece, state, out);
      return;
    case Kind::kByteLevel: {
      // An added token may hold characters outside the alphabet; it stands for itself.
      std::optional<std::string> bytes = BytesFromByteLevel(piece);
      seen.pending += bytes ? *bytes : piece;
      std::string text;
      seen.pending.erase(0, AppendLossy(seen.pending, /*at_end=*/false, text));
      if (!text.empty()) Feed(index + 1, text, state, out);
      return;
    }
    case Kind::kStrip: {
      std::string text = std::move(seen.pending) + std::string(piece);
      seen.pending.clear();
      if (!stage.fused) seen.num_stripped = 0;
      int num_left = CountRepeats(text, stage.pattern, false, stage.start - seen.num_stripped);
      seen.num_stripped += num_left;
      text.erase(0, num_left * stage.pattern.size());
      if (!text.empty()) seen.num_stripped = stage.start;
      int num_right = CountRepeats(text, stage.pattern, true, stage.stop);
      size_t keep = text.size() - num_right * stage.pattern.size();
      if (stage.fused) seen.pending = text.substr(keep);
      text.resize(keep);
      Feed(index + 1, text, state, out);
      return;
    }
  }
}

// Passes on what a stage holds back, because nothing can change it any more.
void Decoder::Flush(size_t index, State& state, std::string& out) const {
  std::string pending = std::move(state[index].pending);
  state[index].pending.clear();
  if (pending.empty()) return;
  switch (stages_[index].kind) {
    case Kind::kByteFallback: {
      if (ValidUtf8Prefix(pending) == pending.size()) {
        Feed(index + 1, pending, state, out);
      } else {
        for (size_t i = 0; i < pending.size(); ++i)
          Feed(index + 1, kReplacementCharacter, state, out);
      }
      return;
    }
    case Kind::kByteLevel: {
      std::string text;
      AppendLossy(pending, /*at_end=*/true, text);
      Feed(index + 1, text, state, out);
      return;
    }
    default:  // Strip: the end of the text is stripped
      return;
  }
}

void Decoder::Finish(State& state, std::string& out) const {
  for (size_t i = 0; i < stages_.size(); ++i) Flush(i, state, out);
  state = NewState();
}

std::string Decoder::BytesOf(std::string_view token) const {
  std::string bytes(token);
  for (const Stage& stage : stages_) {
    if (stage.fused) break;  // what follows concerns the text as a whole
    switch (stage.kind) {
      case Kind::kReplace:
        bytes = ReplaceAll(bytes, stage.pattern, stage.content);
        break;
      case Kind::kMetaspace:
        bytes = ReplaceAll(bytes, stage.pattern, " ");
        break;
      case Kind::kByteFallback:
        if (int value = ByteTokenValue(bytes); value >= 0)
          return std::string(1, static_cast<char>(value));
        break;
      case Kind::kByteLevel:
        if (std::optional<std::string> spelled = BytesFromByteLevel(bytes)) bytes = *spelled;
        break;
      case Kind::kFuse:
      case Kind::kStrip:
      case Kind::kJoinWithSpaces:
        break;
    }
  }
  return bytes;
}

}  // namespace plumbline

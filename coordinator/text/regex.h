// Regex: patterns of tokenizer.json files (Oniguruma's dialect, as far as published files use it)
// run by PCRE2 with its compiler to machine code. Immutable; thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace plumbline {

// [begin, end) of a text; `is_match` tells matches from what lies between them.
struct TextSpan {
  size_t begin;
  size_t end;
  bool is_match;
};

class Regex {
 public:
  static absl::StatusOr<Regex> Compile(const std::string& pattern);

  // Cuts valid UTF-8 into matches and the gaps between them; the spans are not empty and cover the
  // text in order. RESOURCE_EXHAUSTED when matching needs more steps or time than the limits.
  absl::StatusOr<std::vector<TextSpan>> Cut(std::string_view text) const;

 private:
  explicit Regex(std::shared_ptr<void> code) : code_(std::move(code)) {}
  std::shared_ptr<void> code_;  // pcre2_code; kept untyped so that pcre2.h stays out of headers
};

// The same for a plain string.
std::vector<TextSpan> CutByString(std::string_view text, std::string_view pattern);
std::string ReplaceAll(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace plumbline

// Lexer: template source -> tokens, with the whitespace rules of trim_blocks and lstrip_blocks and
// of the signs - and +.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace plumbline::jinja {

struct Token {
  enum class Kind {
    kText,         // outside of tags
    kBlockBegin,   // {%
    kBlockEnd,     // %}
    kOutputBegin,  // {{
    kOutputEnd,    // }}
    kName,
    kString,  // text holds the value
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind;
  std::string text;
  int line;
};

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

// An error of a template, with its line.
absl::Status TemplateError(int line, std::string_view message);

}  // namespace plumbline::jinja

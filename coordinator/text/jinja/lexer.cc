#include "coordinator/text/jinja/lexer.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/str_cat.h"
#include "coordinator/text/unicode.h"
#include "proto/status.h"

namespace plumbline::jinja {
namespace {

// Longest first.
constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "(",  ")",  "[",  "]", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

bool IsNameStart(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || (c & 0x80);
}
bool IsNamePart(char c) { return IsNameStart(c) || std::isdigit(static_cast<unsigned char>(c)); }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) PL_RETURN_IF_ERROR(ReadTextAndTag());
    Add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Add(Token::Kind kind, std::string_view text) {
    tokens_.push_back({.kind = kind, .text = std::string(text), .line = line_});
  }

  // Moves to `end`, counting lines.
  void Advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + pos_, source_.begin() + end, '\n'));
    pos_ = end;
  }

  std::string_view Rest() const { return std::string_view(source_).substr(pos_); }

  size_t SkipWhiteSpace(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      if (!IsWhiteSpace(NextCodePoint(source_, next))) break;
      pos = next;
    }
    return pos;
  }

  // Text up to the next tag, then the tag.
  absl::Status ReadTextAndTag() {
    size_t tag = pos_;
    while ((tag = source_.find('{', tag)) != std::string::npos) {
      char kind = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (kind == '%' || kind == '{' || kind == '#') break;
      ++tag;
    }
    if (tag == std::string::npos) {
      if (pos_ < source_.size()) Add(Token::Kind::kText, Rest());
      Advance(source_.size());
      return absl::OkStatus();
    }
    char kind = source_[tag + 1];
    char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    AddTextBefore(tag, kind, sign);
    Advance(tag + 2);
    if (sign == '-' || sign == '+') Advance(pos_ + 1);
    if (kind == '#') return SkipComment();
    if (kind == '%') {
      bool is_raw = false;
      PL_RETURN_IF_ERROR(ReadRaw(is_raw));
      if (is_raw) return absl::OkStatus();
    }
    Add(kind == '%' ? Token::Kind::kBlockBegin : Token::Kind::kOutputBegin, "");
    return ReadTag(kind == '%');
  }

  // The text before a tag; "-" eats the white space at its end, lstrip_blocks that of the tag's own
  // line.
  void AddTextBefore(size_t tag, char kind, char sign) {
    std::string_view text = std::string_view(source_).substr(pos_, tag - pos_);
    if (sign == '-') {
      while (!text.empty()) {
        size_t last = text.size() - 1;
        while (last > 0 && (text[last] & 0xC0) == 0x80) --last;
        size_t at = last;
        if (!IsWhiteSpace(NextCodePoint(text, at))) break;
        text = text.substr(0, last);
      }
    } else if (sign != '+' && kind != '{') {
      size_t newline = text.rfind('\n');
      size_t line_start = newline == text.npos ? 0 : newline + 1;
      if (line_start > 0 || at_line_start_) {
        size_t pos = line_start;
        while (pos < text.size()) {
          size_t next = pos;
          if (!IsWhiteSpace(NextCodePoint(text, next))) break;
          pos = next;
        }
        if (pos == text.size()) text = text.substr(0, line_start);
      }
    }
    if (!text.empty()) Add(Token::Kind::kText, text);
  }

  // Behind a closing delimiter: "-" eats white space, trim_blocks one newline unless "+" was there.
  void SkipAfterTag(char sign, bool trim_newline) {
    size_t end = pos_;
    if (sign == '-') {
      end = SkipWhiteSpace(pos_);
    } else if (sign != '+' && trim_newline && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    at_line_start_ = end > 0 && end > pos_ && source_[end - 1] == '\n';
    Advance(end);
  }

  absl::Status SkipComment() {
    int begin_line = line_;
    size_t close = source_.find("#}", pos_);
    if (close == std::string::npos) return TemplateError(begin_line, "comment without end");
    char sign = close > pos_ ? source_[close - 1] : '\0';
    Advance(close + 2);
    SkipAfterTag(sign, true);
    return absl::OkStatus();
  }

  // At the inside of "{%": when it is "raw", everything up to "{% endraw %}" is text.
  absl::Status ReadRaw(bool& is_raw) {
    size_t pos = SkipWhiteSpace(pos_);
    if (source_.compare(pos, 3, "raw") != 0) return absl::OkStatus();
    pos = SkipWhiteSpace(pos + 3);
    char sign = pos < source_.size() ? source_[pos] : '\0';
    if (sign == '-' || sign == '+') ++pos;
    if (source_.compare(pos, 2, "%}") != 0) return absl::OkStatus();
    is_raw = true;
    Advance(pos + 2);
    SkipAfterTag(sign, false);
    for (size_t tag = pos_; (tag = source_.find("{%", tag)) != std::string::npos; tag += 2) {
      size_t inside = tag + 2;
      char open_sign = inside < source_.size() ? source_[inside] : '\0';
      if (open_sign == '-' || open_sign == '+') ++inside;
      inside = SkipWhiteSpace(inside);
      if (source_.compare(inside, 6, "endraw") != 0) continue;
      inside = SkipWhiteSpace(inside + 6);
      char close_sign = inside < source_.size() ? source_[inside] : '\0';
      if (close_sign == '-' || close_sign == '+') ++inside;
      if (source_.compare(inside, 2, "%}") != 0) continue;
      AddTextBefore(tag, '%', open_sign);
      Advance(inside + 2);
      SkipAfterTag(close_sign, true);
      return absl::OkStatus();
    }
    return TemplateError(line_, "raw block without endraw");
  }

  absl::Status ReadTag(bool is_block) {
    std::string_view close = is_block ? "%}" : "}}";
    std::vector<char> open_brackets;
    while (true) {
      Advance(SkipWhiteSpace(pos_));
      if (pos_ >= source_.size()) return TemplateError(line_, "tag without end");
      if (open_brackets.empty()) {
        char sign =
            source_[pos_] == '-' || (is_block && source_[pos_] == '+') ? source_[pos_] : '\0';
        if (source_.compare(pos_ + (sign != '\0'), 2, close) == 0) {
          Advance(pos_ + (sign != '\0') + 2);
          Add(is_block ? Token::Kind::kBlockEnd : Token::Kind::kOutputEnd, "");
          SkipAfterTag(sign, is_block);
          return absl::OkStatus();
        }
      }
      char c = source_[pos_];
      if (IsNameStart(c)) {
        size_t end = pos_;
        while (end < source_.size() && IsNamePart(source_[end])) ++end;
        Add(Token::Kind::kName, std::string_view(source_).substr(pos_, end - pos_));
        Advance(end);
      } else if (IsDigit(c)) {
        PL_RETURN_IF_ERROR(ReadNumber());
      } else if (c == '"' || c == '\'') {
        PL_RETURN_IF_ERROR(ReadString(c));
      } else {
        PL_RETURN_IF_ERROR(ReadOperator(open_brackets));
      }
    }
  }

  absl::Status ReadOperator(std::vector<char>& open_brackets) {
    for (std::string_view op : kOperators) {
      if (!Rest().starts_with(op)) continue;
      char c = op[0];
      if (c == '(' || c == '[' || c == '{') {
        open_brackets.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
      } else if (c == ')' || c == ']' || c == '}') {
        if (open_brackets.empty() || open_brackets.back() != c) {
          return TemplateError(line_, absl::StrCat("unexpected '", std::string(1, c), "'"));
        }
        open_brackets.pop_back();
      }
      Add(Token::Kind::kOperator, op);
      Advance(pos_ + op.size());
      return absl::OkStatus();
    }
    size_t end = pos_;
    NextCodePoint(source_, end);
    return TemplateError(
        line_, absl::StrCat("unexpected character '", source_.substr(pos_, end - pos_), "'"));
  }

  absl::Status ReadNumber() {
    size_t end = pos_;
    std::string digits;
    auto read_digits = [&] {
      while (end < source_.size() &&
             (IsDigit(source_[end]) ||
              (source_[end] == '_' && end + 1 < source_.size() && IsDigit(source_[end + 1])))) {
        if (source_[end] != '_') digits += source_[end];
        ++end;
      }
    };
    read_digits();
    bool is_float = false;
    if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
      is_float = true;
      digits += source_[end++];
      read_digits();
    }
    size_t exponent = end + 1;
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-'))
        ++exponent;
      if (exponent < source_.size() && IsDigit(source_[exponent])) {
        is_float = true;
        digits.append(source_, end, exponent - end);
        end = exponent;
        read_digits();
      }
    }
    Add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, digits);
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status ReadString(char quote) {
    int begin_line = line_;
    std::string value;
    size_t pos = pos_ + 1;
    while (pos < source_.size() && source_[pos] != quote) {
      if (source_[pos] != '\\' || pos + 1 >= source_.size()) {
        value += source_[pos++];
        continue;
      }
      ++pos;
      if (!ReadEscape(pos, value)) {
        return TemplateError(begin_line, "string with an escape that is no character");
      }
    }
    if (pos >= source_.size()) return TemplateError(begin_line, "string without end");
    Add(Token::Kind::kString, value);
    Advance(pos + 1);
    return absl::OkStatus();
  }

  // `pos` is behind a backslash. Python's escapes; an unknown one stands for itself.
  bool ReadEscape(size_t& pos, std::string& value) const {
    char c = source_[pos++];
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
    if (size_t i = kLetters.find(c); i != kLetters.npos) {
      value += kMeanings[i];
      return true;
    }
    if (c == '\n') return true;
    size_t num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    int base = 16;
    if (c >= '0' && c <= '7') {
      --pos;
      base = 8;
      num_digits = 1;
      while (num_digits < 3 && pos + num_digits < source_.size() &&
             source_[pos + num_digits] >= '0' && source_[pos + num_digits] <= '7') {
        ++num_digits;
      }
    }
    if (num_digits == 0) {
      value += '\\';
      value += c;
      return true;
    }
    std::string digits = source_.substr(pos, num_digits);
    if (digits.size() != num_digits ||
        !std::all_of(digits.begin(), digits.end(),
                     [](unsigned char d) { return std::isxdigit(d); })) {
      return false;
    }
    unsigned long c32 = std::stoul(digits, nullptr, base);
    if (c32 > 0x10FFFF || (c32 >= 0xD800 && c32 < 0xE000)) return false;
    AppendUtf8(static_cast<char32_t>(c32), value);
    pos += num_digits;
    return true;
  }

  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status TemplateError(int line, std::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat("chat template, line ", line, ": ", std::string(message)));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {  // any newline is \n
    if (source[i] == '\r') {
      if (i + 1 == source.size() || source[i + 1] != '\n') text += '\n';
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();  // keep_trailing_newline is off
  return Lexer(std::move(text)).Run();
}

}  // namespace plumbline::jinja

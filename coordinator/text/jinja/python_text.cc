#include "coordinator/text/jinja/python_text.h"

#include <utf8proc.h>

#include <algorithm>

#include "coordinator/text/unicode.h"

namespace plumbline::jinja {
namespace {

void AppendUpper(char32_t c, std::string& out) {
  if (c == 0xDF) {  // the one common letter whose upper case is two
    out += "SS";
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  }
}

// Of a word's first letter.
void AppendTitle(char32_t c, std::string& out) {
  if (c == 0xDF) {
    out += "Ss";
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void AppendLower(char32_t c, std::string& out) {
  AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
}

bool IsCased(char32_t c) {
  utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
         category == UTF8PROC_CATEGORY_LT;
}

// str.isspace also takes the ASCII separators 0x1C..0x1F.
bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

size_t CharacterBefore(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
  return begin;
}

std::vector<std::string> SplitAtSpace(std::string_view text, int64_t max_split) {
  std::vector<std::string> parts;
  size_t pos = 0;
  auto skip = [&](bool space) {
    while (pos < text.size()) {
      size_t next = pos;
      if (IsPythonSpace(NextCodePoint(text, next)) != space) break;
      pos = next;
    }
  };
  for (skip(true); pos < text.size(); skip(true)) {
    if (max_split >= 0 && static_cast<int64_t>(parts.size()) == max_split) {
      parts.push_back(Strip(text.substr(pos), Side::kRight, std::nullopt));
      break;
    }
    size_t begin = pos;
    skip(false);
    parts.emplace_back(text.substr(begin, pos - begin));
  }
  return parts;
}

}  // namespace

std::string Strip(std::string_view text, Side side, const std::optional<std::string>& characters) {
  auto strips = [&](std::string_view character) {
    size_t pos = 0;
    if (!characters) return IsPythonSpace(NextCodePoint(character, pos));
    return characters->find(character) != std::string::npos;
  };
  while (side != Side::kRight && !text.empty()) {
    size_t next = 0;
    NextCodePoint(text, next);
    if (!strips(text.substr(0, next))) break;
    text.remove_prefix(next);
  }
  while (side != Side::kLeft && !text.empty()) {
    size_t last = CharacterBefore(text, text.size());
    if (!strips(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return std::string(text);
}

std::vector<std::string> Split(std::string_view text, const std::optional<std::string>& separator,
                               int64_t max_split) {
  if (!separator) return SplitAtSpace(text, max_split);
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at; max_split != 0 && (at = text.find(*separator, begin)) != text.npos; --max_split) {
    parts.emplace_back(text.substr(begin, at - begin));
    begin = at + separator->size();
  }
  parts.emplace_back(text.substr(begin));
  return parts;
}

std::vector<std::string> SplitFromRight(std::string_view text,
                                        const std::optional<std::string>& separator,
                                        int64_t max_split) {
  std::vector<std::string> parts;
  if (!separator) {
    std::string rest = Strip(text, Side::kRight, std::nullopt);
    while (!rest.empty() && max_split != 0) {
      size_t begin = rest.size();
      while (begin > 0) {
        size_t last = CharacterBefore(rest, begin);
        size_t at = last;
        if (IsPythonSpace(NextCodePoint(rest, at))) break;
        begin = last;
      }
      parts.push_back(rest.substr(begin));
      rest = Strip(rest.substr(0, begin), Side::kRight, std::nullopt);
      --max_split;
    }
    rest = Strip(rest, Side::kLeft, std::nullopt);
    if (!rest.empty()) parts.push_back(rest);
  } else {
    for (size_t at; max_split != 0 && (at = text.rfind(*separator)) != text.npos; --max_split) {
      parts.emplace_back(text.substr(at + separator->size()));
      text = text.substr(0, at);
    }
    parts.emplace_back(text);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    size_t end = pos;
    char32_t c = NextCodePoint(text, pos);
    bool ends_line = (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                     c == 0x2028 || c == 0x2029;
    if (!ends_line) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.emplace_back(text.substr(begin, (keep_ends ? pos : end) - begin));
    begin = pos;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return lines;
}

std::string Upper(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) AppendUpper(NextCodePoint(text, pos), out);
  return out;
}

std::string Lower(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) AppendLower(NextCodePoint(text, pos), out);
  return out;
}

std::string Title(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    char32_t c = NextCodePoint(text, pos);
    in_word ? AppendLower(c, out) : AppendTitle(c, out);
    in_word = IsCased(c);
  }
  return out;
}

std::string Capitalize(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    bool first = pos == 0;
    char32_t c = NextCodePoint(text, pos);
    first ? AppendTitle(c, out) : AppendLower(c, out);
  }
  return out;
}

std::string Reversed(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    size_t last = CharacterBefore(text, text.size());
    out += text.substr(last);
    text = text.substr(0, last);
  }
  return out;
}

std::string ReplaceText(std::string_view text, std::string_view old_text, std::string_view new_text,
                        int64_t max_count) {
  std::string out;
  size_t pos = 0;
  if (old_text.empty()) {  // before every character and at the end
    for (; max_count != 0; --max_count) {
      out += new_text;
      if (pos >= text.size()) return out;
      size_t begin = pos;
      NextCodePoint(text, pos);
      out += text.substr(begin, pos - begin);
    }
  } else {
    for (size_t at; max_count != 0 && (at = text.find(old_text, pos)) != text.npos; --max_count) {
      out += text.substr(pos, at - pos);
      out += new_text;
      pos = at + old_text.size();
    }
  }
  out += text.substr(std::min(pos, text.size()));
  return out;
}

size_t CountText(std::string_view text, std::string_view part) {
  if (part.empty()) return CountCodePoints(text) + 1;
  size_t count = 0;
  for (size_t pos = 0; (pos = text.find(part, pos)) != text.npos; pos += part.size()) ++count;
  return count;
}

}  // namespace plumbline::jinja

#include "coordinator/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "kernels/check.h"

namespace plumbline {
namespace {

// What follows a lead byte: number of continuation bytes and the range of the first one (Unicode,
// table 3-7).
struct Lead {
  int num_continuation = -1;  // -1: cannot begin a character
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {.num_continuation = 0};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.num_continuation = 1};
  if (byte == 0xE0) return {.num_continuation = 2, .low = 0xA0};
  if (byte == 0xED) return {.num_continuation = 2, .high = 0x9F};
  if (byte < 0xF0) return {.num_continuation = 2};
  if (byte == 0xF0) return {.num_continuation = 3, .low = 0x90};
  if (byte == 0xF4) return {.num_continuation = 3, .high = 0x8F};
  if (byte < 0xF4) return {.num_continuation = 3};
  return {};
}

// Length of the maximal subpart at `pos`: a whole character (`complete`) or the longest prefix of
// one, at least one byte.
size_t SubpartLength(std::string_view text, size_t pos, bool& complete) {
  Lead lead = LeadOf(static_cast<uint8_t>(text[pos]));
  complete = false;
  if (lead.num_continuation < 0) return 1;
  size_t length = 1;
  for (int i = 0; i < lead.num_continuation; ++i, ++length) {
    if (pos + length >= text.size()) return length;
    uint8_t byte = static_cast<uint8_t>(text[pos + length]);
    uint8_t low = i == 0 ? lead.low : 0x80;
    uint8_t high = i == 0 ? lead.high : 0xBF;
    if (byte < low || byte > high) return length;
  }
  complete = true;
  return length;
}

// Marks and compatibility characters that Unicode got after version 9, whose tables the Hugging
// Face library normalizes by (found by comparing all characters): to it they are plain characters.
struct CodePointRange {
  char32_t first;
  char32_t last;
};
constexpr CodePointRange kUnknownToReference[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x16FF0, 0x16FF1},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1F16C, 0x1F16C},
    {0x1FBF0, 0x1FBF9}};

bool IsUnknownToReference(char32_t c) {
  if (c < kUnknownToReference[0].first) return false;
  return std::any_of(
      std::begin(kUnknownToReference), std::end(kUnknownToReference),
      [c](const CodePointRange& range) { return c >= range.first && c <= range.last; });
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

}  // namespace

size_t ValidUtf8Prefix(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (static_cast<uint8_t>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    bool complete;
    size_t length = SubpartLength(text, pos, complete);
    if (!complete) return pos;
    pos += length;
  }
  return pos;
}

char32_t NextCodePoint(std::string_view text, size_t& pos) {
  uint8_t lead = static_cast<uint8_t>(text[pos++]);
  if (lead < 0x80) return lead;
  int num_continuation = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t c = lead & (0x3F >> num_continuation);
  for (int i = 0; i < num_continuation && pos < text.size(); ++i) {
    c = (c << 6) | (static_cast<uint8_t>(text[pos++]) & 0x3F);
  }
  return c;
}

void AppendUtf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

namespace {

// One stretch without characters that are unknown to the reference.
void AppendNormalized(std::vector<utf8proc_int32_t> points, bool compose, std::string& out) {
  // utf8proc_decompose sorts marks by insertion, which is quadratic in a run a user may send; hence
  // our own sort.
  auto class_of = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (size_t i = 0; i < points.size();) {
    if (class_of(points[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < points.size() && class_of(points[end]) != 0) ++end;
    std::stable_sort(points.begin() + i, points.begin() + end,
                     [&](auto a, auto b) { return class_of(a) < class_of(b); });
    i = end;
  }
  if (compose) {
    utf8proc_ssize_t length = utf8proc_normalize_utf32(
        points.data(), points.size(),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    PL_CHECK(length >= 0);
    points.resize(length);
  }
  for (utf8proc_int32_t c : points) AppendUtf8(static_cast<char32_t>(c), out);
}

}  // namespace

size_t CountCodePoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

size_t AppendLossy(std::string_view bytes, bool at_end, std::string& out) {
  size_t pos = 0;
  while (pos < bytes.size()) {
    bool complete;
    size_t length = SubpartLength(bytes, pos, complete);
    if (complete) {
      out.append(bytes, pos, length);
    } else {
      bool unfinished = pos + length == bytes.size() &&
                        LeadOf(static_cast<uint8_t>(bytes[pos])).num_continuation > 0;
      if (unfinished && !at_end) return pos;
      out += kReplacementCharacter;
    }
    pos += length;
  }
  return pos;
}

std::string Normalize(std::string_view text, NormalForm form) {
  if (IsAscii(text)) return std::string(text);
  bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  int decompose_options = UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    char32_t c = NextCodePoint(text, pos);
    if (IsUnknownToReference(c)) {
      AppendNormalized(std::exchange(points, {}), compose, out);
      AppendUtf8(c, out);
      continue;
    }
    utf8proc_int32_t parts[32];  // the longest decomposition in Unicode has 18
    int boundary_class = 0;
    utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 32,
                                static_cast<utf8proc_option_t>(decompose_options), &boundary_class);
    PL_CHECK(count >= 0 && count <= 32);
    points.insert(points.end(), parts, parts + count);
  }
  AppendNormalized(std::move(points), compose, out);
  return out;
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsNumeric(char32_t c) {
  utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool IsWord(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0x200C || c == 0x200D;
  }
}

bool IsPrintable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

}  // namespace plumbline

// UTF-8 and Unicode helpers of the text code. "Valid" text is well-formed UTF-8 (no surrogates, no
// overlong forms).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace plumbline {

// Length of the longest valid prefix; text.size() when all of it is valid.
size_t ValidUtf8Prefix(std::string_view text);

// Reads the character at `pos` of valid text and moves `pos` behind it. REQUIRES: pos <
// text.size().
char32_t NextCodePoint(std::string_view text, size_t& pos);
void AppendUtf8(char32_t code_point, std::string& out);
size_t CountCodePoints(std::string_view valid_text);

// Appends `bytes` as text; every maximal part that can begin no character becomes U+FFFD. Returns
// how many bytes were used: all of them when `at_end`, else all but an unfinished last character
// (at most three bytes).
size_t AppendLossy(std::string_view bytes, bool at_end, std::string& out);

// What stands for bytes that are no text.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
// Time is O(n log n) also for long runs of combining marks.
std::string Normalize(std::string_view valid_text, NormalForm form);

bool IsWhiteSpace(char32_t c);  // property White_Space
bool IsNumeric(char32_t c);     // general category N
bool IsWord(
    char32_t c);  // letters, marks, decimal digits, letter numbers, connector punctuation, joiners
bool IsPrintable(char32_t c);  // as Python's str.isprintable

}  // namespace plumbline

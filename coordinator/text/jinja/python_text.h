// Python's str methods on valid UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace plumbline::jinja {

enum class Side { kLeft, kRight, kBoth };

// `characters` unset: white space.
std::string Strip(std::string_view text, Side side, const std::optional<std::string>& characters);
// `separator` unset: runs of white space. `max_split` < 0: no limit.
std::vector<std::string> Split(std::string_view text, const std::optional<std::string>& separator,
                               int64_t max_split);
std::vector<std::string> SplitFromRight(std::string_view text,
                                        const std::optional<std::string>& separator,
                                        int64_t max_split);
std::vector<std::string> SplitLines(std::string_view text, bool keep_ends);
std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Title(std::string_view text);
std::string Capitalize(std::string_view text);
std::string Reversed(std::string_view text);
// `max_count` < 0: all.
std::string ReplaceText(std::string_view text, std::string_view old_text, std::string_view new_text,
                        int64_t max_count);
size_t CountText(
    std::string_view text,
    std::string_view part);  // without overlap; an empty part counts between characters

}  // namespace plumbline::jinja

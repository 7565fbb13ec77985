#include "coordinator/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <chrono>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

// A whole match of a tokenizer's pattern takes a few steps per character; this is far above what 1
// GB of text would need.
constexpr uint32_t kMatchLimit = 50'000'000;
// The limit above holds for each place where a match may begin, so a bad pattern needs one for the text too. 32 MB
// take a tenth of it.
constexpr std::chrono::seconds kMaxTime(5);
constexpr size_t kPlacesPerCall = 16;  // between looks at the clock
constexpr size_t kJitStackBytes = 4 << 20;

// The inside of a class with the meaning that Oniguruma gives to \s and \w. (PCRE2's \s also takes
// U+180E, its \w no marks.)
constexpr std::string_view kSpaceClass = R"(\t-\r\x{85}\p{Z})";
constexpr std::string_view kWordClass = R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc})"
                                         R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE})";

absl::StatusOr<std::string> Translate(const std::string& pattern) {
  std::string out;
  int class_depth = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      char escape = pattern[++i];
      bool negated = escape == 'S' || escape == 'W';
      if (escape == 'h' || escape == 'H' || escape == 'R' || escape == 'X' || escape == 'G') {
        return absl::InvalidArgumentError(absl::StrCat("regular expression \"", pattern, "\": \\",
                                                       std::string(1, escape),
                                                       " is not supported"));
      }
      if (escape != 's' && escape != 'w' && !negated) {
        out += {c, escape};
        continue;
      }
      if (negated && class_depth > 0) {
        return absl::InvalidArgumentError(absl::StrCat("regular expression \"", pattern, "\": \\",
                                                       std::string(1, escape),
                                                       " inside a class is not supported"));
      }
      std::string_view inside = escape == 's' || escape == 'S' ? kSpaceClass : kWordClass;
      if (class_depth > 0) {
        out += inside;
      } else {
        out += negated ? "[^" : "[";
        out += inside;
        out += "]";
      }
      continue;
    }
    if (class_depth > 0) {
      bool is_posix_name = c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':';
      if ((c == '[' && !is_posix_name) || pattern.compare(i, 2, "&&") == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("regular expression \"", pattern,
                         "\": nested classes and && inside a class are not supported"));
      }
      if (is_posix_name) {
        size_t close = pattern.find(":]", i + 2);
        if (close != std::string::npos) {
          out.append(pattern, i, close + 2 - i);
          i = close + 1;
          continue;
        }
      }
      if (c == ']') --class_depth;
    } else if (c == '[') {
      ++class_depth;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') {  // a leading ] is a member
        out += "\\]";
        ++i;
      }
      continue;
    }
    out += c;
  }
  return out;
}

struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
  MatchState() {
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

std::string MessageOf(int error) {
  PCRE2_UCHAR message[256];
  pcre2_get_error_message(error, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

// The first byte of the first character behind `pos`.
size_t NextCharacter(std::string_view text, size_t pos) {
  do {
    ++pos;
  } while (pos < text.size() && (text[pos] & 0xC0) == 0x80);
  return pos;
}

void AddSpan(size_t begin, size_t end, bool is_match, std::vector<TextSpan>& spans) {
  if (begin < end) spans.push_back({begin, end, is_match});
}

}  // namespace

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern) {
  absl::StatusOr<std::string> translated = Translate(pattern);
  if (!translated.ok()) return translated.status();
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_USE_OFFSET_LIMIT, &error, &offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", pattern, "\": ", MessageOf(error)));
  }
  pcre2_jit_compile(
      code, PCRE2_JIT_COMPLETE);  // where there is no compiler for the CPU, PCRE2 interprets
  return Regex(
      std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); }));
}

absl::StatusOr<std::vector<TextSpan>> Regex::Cut(std::string_view text) const {
  std::vector<TextSpan> spans;
  // One per thread: its creation maps memory, which would cost more than matching a short word.
  static thread_local MatchState state;
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state.data);
  size_t covered = 0;
  const auto deadline = std::chrono::steady_clock::now() + kMaxTime;
  for (size_t pos = 0; pos <= text.size();) {
    if (std::chrono::steady_clock::now() > deadline) {
      return absl::ResourceExhaustedError(absl::StrCat("matching the tokenizer's regular expression takes longer than ",
                                                       kMaxTime.count(), " s"));
    }
    const size_t last_place = pos + kPlacesPerCall;
    pcre2_set_offset_limit(state.context, last_place);
    int result = pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                             reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), pos,
                             PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (result == PCRE2_ERROR_NOMATCH) {
      pos = NextCharacter(text, last_place);
      continue;
    }
    if (result < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("matching the tokenizer's regular expression: ", MessageOf(result)));
    }
    size_t begin = range[0];
    size_t end = range[1];
    if (end > begin) {
      AddSpan(covered, begin, false, spans);
      AddSpan(begin, end, true, spans);
      covered = pos = end;
      continue;
    }
    pos = NextCharacter(text, end);  // an empty match
  }
  AddSpan(covered, text.size(), false, spans);
  return spans;
}

std::vector<TextSpan> CutByString(std::string_view text, std::string_view pattern) {
  std::vector<TextSpan> spans;
  size_t covered = 0;
  if (!pattern.empty()) {
    for (size_t at; (at = text.find(pattern, covered)) != std::string_view::npos;) {
      AddSpan(covered, at, false, spans);
      AddSpan(at, at + pattern.size(), true, spans);
      covered = at + pattern.size();
    }
  }
  AddSpan(covered, text.size(), false, spans);
  return spans;
}

std::string ReplaceAll(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  out.reserve(text.size());
  for (const TextSpan& span : CutByString(text, pattern)) {
    out += span.is_match ? content : text.substr(span.begin, span.end - span.begin);
  }
  return out;
}

}  // namespace plumbline

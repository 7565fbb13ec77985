#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr uint64_t kMaxId = 1 << 22;  // as in bpe.cc

// Begin of the character that ends at `end`.
size_t CharacterBefore(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
  return begin;
}

bool WordBefore(std::string_view text, size_t pos) {
  if (pos == 0) return false;
  size_t begin = CharacterBefore(text, pos);
  return IsWord(NextCodePoint(text, begin));
}

bool WordAfter(std::string_view text, size_t pos) {
  return pos < text.size() && IsWord(NextCodePoint(text, pos));
}

}  // namespace

absl::StatusOr<AddedTokens> AddedTokens::Parse(const nlohmann::json& json, const Bpe& bpe,
                                               const Normalizer& normalizer) {
  AddedTokens added;
  if (json.is_null()) return added;
  if (!json.is_array()) return absl::InvalidArgumentError("\"added_tokens\" is not an array");
  for (const nlohmann::json& entry : json) {
    std::string part = absl::StrCat("added_tokens[", &entry - &json[0], "]");
    Token token;
    if (!entry.is_object())
      return absl::InvalidArgumentError(absl::StrCat(part, " is not an object"));
    PL_ASSIGN_OR_RETURN(token.content, StringField(entry, "content", part));
    PL_ASSIGN_OR_RETURN(token.special, BoolField(entry, "special", false, part));
    PL_ASSIGN_OR_RETURN(token.single_word, BoolField(entry, "single_word", false, part));
    PL_ASSIGN_OR_RETURN(token.lstrip, BoolField(entry, "lstrip", false, part));
    PL_ASSIGN_OR_RETURN(token.rstrip, BoolField(entry, "rstrip", false, part));
    PL_ASSIGN_OR_RETURN(token.normalized, BoolField(entry, "normalized", !token.special, part));
    auto id = entry.find("id");
    if (id == entry.end() || !id->is_number_unsigned() || id->get<uint64_t>() >= kMaxId) {
      return absl::InvalidArgumentError(absl::StrCat(part, ": \"id\" is not in 0..", kMaxId - 1));
    }
    token.id = bpe.IdOf(token.content).value_or(id->get<int32_t>());
    if (token.content.empty()) continue;

    added.ids_[token.content] = token.id;
    added.contents_[token.id] = token.content;
    added.max_id_ = std::max(added.max_id_, token.id);
    if (token.special) added.special_.insert(token.content);
    int32_t index = static_cast<int32_t>(added.tokens_.size());
    if (token.normalized) {
      PL_ASSIGN_OR_RETURN(std::string text, normalizer.Apply(token.content));
      added.after_.Insert(text, index);
    } else {
      added.before_.Insert(token.content, index);
    }
    added.tokens_.push_back(std::move(token));
  }
  return added;
}

void AddedTokens::Trie::Insert(std::string_view text, int32_t token_index) {
  if (text.empty()) return;
  starts[static_cast<uint8_t>(text[0])] = true;
  int32_t node = 0;
  for (char byte : text) {
    uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
    auto [it, inserted] = edges.try_emplace(key, static_cast<int32_t>(token_of_node.size()));
    if (inserted) token_of_node.push_back(-1);
    node = it->second;
  }
  if (token_of_node[node] < 0) token_of_node[node] = token_index;
}

int32_t AddedTokens::LongestAt(const Trie& trie, std::string_view text, size_t pos,
                               size_t& length) {
  int32_t best = -1;
  int32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    auto it = trie.edges.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[i]));
    if (it == trie.edges.end()) break;
    node = it->second;
    if (trie.token_of_node[node] >= 0) {
      best = trie.token_of_node[node];
      length = i + 1 - pos;
    }
  }
  return best;
}

std::vector<AddedSpan> AddedTokens::Cut(std::string_view text, Stage stage,
                                        bool parse_special) const {
  const Trie& trie = stage == Stage::kBeforeNormalizer ? before_ : after_;
  std::vector<AddedSpan> spans;
  size_t covered = 0;
  for (size_t pos = 0; pos < text.size();) {
    size_t length = 0;
    int32_t index = -1;
    if (trie.starts[static_cast<uint8_t>(text[pos])]) index = LongestAt(trie, text, pos, length);
    if (index < 0) {
      ++pos;
      continue;
    }
    const Token& token = tokens_[index];
    size_t begin = pos;
    size_t end = pos + length;
    pos = end;
    if (token.special && !parse_special) continue;
    if (token.single_word && (WordBefore(text, begin) || WordAfter(text, end))) continue;
    begin = std::max(begin, covered);
    if (token.lstrip) {
      while (begin > covered) {
        size_t previous = CharacterBefore(text, begin);
        size_t at = previous;
        if (!IsWhiteSpace(NextCodePoint(text, at))) break;
        begin = previous;
      }
    }
    if (token.rstrip) {
      while (end < text.size()) {
        size_t next = end;
        if (!IsWhiteSpace(NextCodePoint(text, next))) break;
        end = next;
      }
    }
    if (covered < begin) spans.push_back({covered, begin, std::nullopt});
    spans.push_back({begin, end, token.id});
    covered = end;
    pos = std::max(pos, end);
  }
  if (covered < text.size()) spans.push_back({covered, text.size(), std::nullopt});
  return spans;
}

std::optional<int32_t> AddedTokens::IdOf(std::string_view token) const {
  auto it = ids_.find(token);
  return it == ids_.end() ? std::nullopt : std::optional<int32_t>(it->second);
}

std::optional<std::string_view> AddedTokens::TokenOf(int32_t id) const {
  auto it = contents_.find(id);
  if (it == contents_.end()) return std::nullopt;
  return std::string_view(it->second);
}

}  // namespace plumbline

// AddedTokens: the "added_tokens" of a tokenizer.json: strings that are one token wherever they
// stand in a text, before any pre-tokenizer or merge. Immutable; thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/string_map.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

// [begin, end) of a text: an added token, or what lies between two of them.
struct AddedSpan {
  size_t begin;
  size_t end;
  std::optional<int32_t> id;
};

class AddedTokens {
 public:
  enum class Stage { kBeforeNormalizer, kAfterNormalizer };

  // `json` is an array, or null. A token that is also in the vocabulary has the vocabulary's id.
  static absl::StatusOr<AddedTokens> Parse(const nlohmann::json& json, const Bpe& bpe,
                                           const Normalizer& normalizer);

  // Leftmost, longest; covers the text in order. Special tokens are found if `parse_special`.
  std::vector<AddedSpan> Cut(std::string_view text, Stage stage, bool parse_special) const;

  bool IsSpecial(std::string_view token) const { return special_.contains(token); }
  std::optional<int32_t> IdOf(std::string_view token) const;
  std::optional<std::string_view> TokenOf(int32_t id) const;
  int max_id() const { return max_id_; }  // -1 without tokens

 private:
  struct Token {
    std::string content;
    int32_t id = 0;
    bool special = false;
    bool single_word = false;
    bool lstrip = false;
    bool rstrip = false;
    bool normalized = false;
  };
  // A byte trie; children of node n lie in edges_ under {n, byte}.
  struct Trie {
    absl::flat_hash_map<uint64_t, int32_t> edges;
    std::vector<int32_t> token_of_node = {-1};  // index into tokens_
    bool starts[256] = {};
    void Insert(std::string_view text, int32_t token_index);
  };

  // Longest token of `trie` at `pos`; -1 for none.
  static int32_t LongestAt(const Trie& trie, std::string_view text, size_t pos, size_t& length);

  std::vector<Token> tokens_;
  Trie before_, after_;
  StringMap<int32_t> ids_;
  absl::flat_hash_map<int32_t, std::string> contents_;
  StringSet special_;
  int max_id_ = -1;
};

}  // namespace plumbline

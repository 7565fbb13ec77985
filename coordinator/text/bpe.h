// Bpe: the "model" of a tokenizer.json: a vocabulary and ranked merges. Immutable; thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "coordinator/text/string_map.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

class Bpe {
 public:
  static absl::StatusOr<Bpe> Parse(const nlohmann::json& json);

  // Appends the ids of one pre-tokenized word. O(n log n) in its characters.
  void Encode(std::string_view word, std::vector<int32_t>& ids) const;

  std::optional<int32_t> IdOf(std::string_view token) const;
  std::string_view TokenOf(int32_t id) const;  // empty when there is none
  int num_ids() const { return static_cast<int>(tokens_.size()); }

 private:
  struct Merge {
    int32_t rank;
    int32_t id;
  };
  struct Symbol {  // a doubly linked list inside a vector
    int32_t id;
    int32_t previous;
    int32_t next;
    bool alive;
  };
  static uint64_t KeyOf(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  absl::Status ReadVocabulary(const nlohmann::json& json);
  absl::Status ReadMerges(const nlohmann::json& json);
  std::vector<Symbol> SymbolsOf(std::string_view word) const;
  void MergeAll(std::vector<Symbol>& symbols) const;

  StringMap<int32_t> ids_;
  std::vector<std::string> tokens_;  // by id
  absl::flat_hash_map<uint64_t, Merge> merges_;
  // Ids of single characters of one or two bytes, by code point; -1 for none. Byte-level words
  // consist of these alone.
  std::array<int32_t, 0x800> short_characters_;
  std::array<int32_t, 256> byte_tokens_;  // "<0x41>"; -1 for none
  std::optional<int32_t> unknown_id_;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace plumbline

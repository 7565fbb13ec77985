#include "coordinator/text/bpe.h"

#include <algorithm>
#include <queue>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxId = 1 << 22;  // the vector by id stays small whatever a file says

bool IsEmptyOrNull(const nlohmann::json& json, const char* key) {
  auto it = json.find(key);
  return it == json.end() || it->is_null() ||
         (it->is_string() && it->get_ref<const std::string&>().empty());
}

bool Flag(const nlohmann::json& json, const char* key) {
  auto it = json.find(key);
  return it != json.end() && it->is_boolean() && it->get<bool>();
}

}  // namespace

absl::StatusOr<Bpe> Bpe::Parse(const nlohmann::json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("\"model\" is not an object");
  if (auto type = json.find("type"); type != json.end() && *type != "BPE") {
    return absl::InvalidArgumentError(
        absl::StrCat("model type ", type->dump(), " is not supported; only \"BPE\" is"));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!IsEmptyOrNull(json, key)) {
      return absl::InvalidArgumentError(absl::StrCat("model: \"", key, "\" is not supported"));
    }
  }
  if (auto it = json.find("dropout");
      it != json.end() && it->is_number() && it->get<double>() != 0) {
    return absl::InvalidArgumentError("model: \"dropout\" is for training only");
  }
  Bpe bpe;
  PL_RETURN_IF_ERROR(bpe.ReadVocabulary(json));
  PL_RETURN_IF_ERROR(bpe.ReadMerges(json));
  bpe.fuse_unknown_ = Flag(json, "fuse_unk");
  bpe.byte_fallback_ = Flag(json, "byte_fallback");
  bpe.ignore_merges_ = Flag(json, "ignore_merges");
  if (!IsEmptyOrNull(json, "unk_token") && json["unk_token"].is_string()) {
    bpe.unknown_id_ = bpe.IdOf(json["unk_token"].get_ref<const std::string&>());
    if (!bpe.unknown_id_) {
      return absl::InvalidArgumentError(
          absl::StrCat("model: unk_token ", json["unk_token"].dump(), " is not in the vocabulary"));
    }
  }
  return bpe;
}

absl::Status Bpe::ReadVocabulary(const nlohmann::json& json) {
  auto vocab = json.find("vocab");
  if (vocab == json.end() || !vocab->is_object()) {
    return absl::InvalidArgumentError("model: \"vocab\" is not an object");
  }
  ids_.reserve(vocab->size());
  short_characters_.fill(-1);
  byte_tokens_.fill(-1);
  for (const auto& [token, id] : vocab->items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= kMaxId) {
      return absl::InvalidArgumentError(absl::StrCat("model: id of token \"", token, "\" is ",
                                                     id.dump(), ", not in 0..", kMaxId - 1));
    }
    int32_t value = id.get<int32_t>();
    if (value >= num_ids()) tokens_.resize(value + 1);
    tokens_[value] = token;
    ids_.emplace(token, value);
    if (size_t pos = 0; !token.empty()) {
      char32_t c = NextCodePoint(token, pos);
      if (pos == token.size() && c < short_characters_.size()) short_characters_[c] = value;
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    byte_tokens_[byte] = IdOf(absl::StrFormat("<0x%02X>", byte)).value_or(-1);
  }
  return absl::OkStatus();
}

absl::Status Bpe::ReadMerges(const nlohmann::json& json) {
  auto merges = json.find("merges");
  if (merges == json.end() || !merges->is_array()) {
    return absl::InvalidArgumentError("model: \"merges\" is not an array");
  }
  merges_.reserve(merges->size());
  int32_t rank = 0;
  for (const nlohmann::json& merge : *merges) {
    std::string left, right;
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else if (merge.is_string()) {
      const std::string& text = merge.get_ref<const std::string&>();
      size_t space = text.find(' ');
      if (space != std::string::npos) {
        left = text.substr(0, space);
        right = text.substr(space + 1);
      }
    }
    std::optional<int32_t> left_id = IdOf(left), right_id = IdOf(right),
                           merged_id = IdOf(left + right);
    if (!left_id || !right_id || !merged_id) {
      return absl::InvalidArgumentError(
          absl::StrCat("model: merge ", rank, " (", merge.dump(),
                       ") is not a pair whose parts and whole are in the vocabulary"));
    }
    merges_[KeyOf(*left_id, *right_id)] = {.rank = rank++, .id = *merged_id};
  }
  return absl::OkStatus();
}

std::optional<int32_t> Bpe::IdOf(std::string_view token) const {
  auto it = ids_.find(token);
  return it == ids_.end() ? std::nullopt : std::optional<int32_t>(it->second);
}

std::string_view Bpe::TokenOf(int32_t id) const {
  return id >= 0 && id < num_ids() ? std::string_view(tokens_[id]) : std::string_view();
}

std::vector<Bpe::Symbol> Bpe::SymbolsOf(std::string_view word) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  auto add = [&](int32_t id) {
    int32_t index = static_cast<int32_t>(symbols.size());
    symbols.push_back({.id = id, .previous = index - 1, .next = index + 1, .alive = true});
  };
  bool unknown_pending = false;
  for (size_t pos = 0; pos < word.size();) {
    size_t begin = pos;
    char32_t c = NextCodePoint(word, pos);
    std::string_view character = word.substr(begin, pos - begin);
    int32_t id = c < short_characters_.size() ? short_characters_[c] : IdOf(character).value_or(-1);
    if (id >= 0) {
      if (unknown_pending) add(*unknown_id_);
      unknown_pending = false;
      add(id);
      continue;
    }
    auto byte_token = [&](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(),
                                      [&](char byte) { return byte_token(byte) >= 0; })) {
      for (char byte : character) add(byte_token(byte));
      continue;
    }
    if (!unknown_id_) continue;  // the character is lost, as the format has it
    if (unknown_pending && !fuse_unknown_) add(*unknown_id_);
    unknown_pending = true;
  }
  if (unknown_pending) add(*unknown_id_);
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

void Bpe::MergeAll(std::vector<Symbol>& symbols) const {
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t id;
    // Lowest rank first, then leftmost; std::priority_queue takes the largest.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  auto find = [&](int32_t left) -> const Merge* {
    if (left < 0 || symbols[left].next < 0) return nullptr;
    auto it = merges_.find(KeyOf(symbols[left].id, symbols[symbols[left].next].id));
    return it == merges_.end() ? nullptr : &it->second;
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    if (const Merge* merge = find(i)) storage.push_back({merge->rank, i, merge->id});
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(storage));
  while (!queue.empty()) {
    Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    // Neighbours may have changed since the candidate was queued.
    const Merge* merge = left.alive ? find(top.position) : nullptr;
    if (merge == nullptr || merge->id != top.id) continue;
    Symbol& right = symbols[left.next];
    right.alive = false;
    left.id = top.id;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    if (const Merge* next = find(left.previous)) queue.push({next->rank, left.previous, next->id});
    if (const Merge* next = find(top.position)) queue.push({next->rank, top.position, next->id});
  }
}

void Bpe::Encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (ignore_merges_) {
    if (std::optional<int32_t> id = IdOf(word)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<Symbol> symbols = SymbolsOf(word);
  MergeAll(symbols);
  for (const Symbol& symbol : symbols) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
}

}  // namespace plumbline

// Tokenizer: text <-> token ids, as a checkpoint's tokenizer.json (Hugging Face `tokenizers`
// format) says. Ids and decoded text equal that library's.
//
// Supported: BPE models (byte-level and SentencePiece style with byte fallback) with the
// normalizers, pre-tokenizers, post-processors and decoders that published causal language models
// use. Anything else in the file is an error that names it. Immutable after loading; every method
// may be called from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace plumbline {

class Decoder;

struct EncodeOptions {
  bool parse_special = true;        // false: the text of a special token is ordinary text
  bool add_special_tokens = false;  // true: as the post-processor says, e.g. a leading BOS
};

struct DecodeOptions {
  bool skip_special_tokens = false;
};

class Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& tokenizer_json_path);
  // `name` stands for the file in error messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> LoadFromJson(std::string_view json,
                                                                 const std::string& name);
  ~Tokenizer();

  // INVALID_ARGUMENT when `utf8` is not UTF-8.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view utf8,
                                              const EncodeOptions& options = {}) const;
  // Always valid UTF-8: bytes that form no character become U+FFFD. Ids outside the vocabulary add
  // nothing.
  std::string Decode(std::span<const int32_t> ids, const DecodeOptions& options = {}) const;

  // The bytes a token adds in the middle of a text (any bytes, perhaps part of a character); empty
  // when there is none.
  std::string TokenBytes(int32_t id) const;
  // The token as the vocabulary spells it; empty when there is none.
  std::string_view TokenString(int32_t id) const;
  // Of a vocabulary spelling or an added token.
  std::optional<int32_t> IdOf(std::string_view token) const;
  bool IsSpecial(int32_t id) const;
  // One more than the largest id.
  int vocab_size() const;

  const Decoder& decoder() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace plumbline

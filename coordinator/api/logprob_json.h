// Log-probabilities as JSON, in the three shapes that clients know.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/openai_response.h"
#include "coordinator/engine/engine.h"
#include "coordinator/text/tokenizer.h"

namespace plumbline {

// How tokens are spelt. A token that is not whole characters is "bytes:\xe2\x80", as OpenAI has it,
// so that different tokens keep different keys.
class TokenSpelling {
 public:
  TokenSpelling(const Tokenizer& tokenizer, bool as_token_ids)
      : tokenizer_(tokenizer), as_token_ids_(as_token_ids) {}

  std::string Text(int32_t token) const;
  // What the token adds to a text; for special tokens their name.
  std::string Bytes(int32_t token) const;
  bool IsSpecial(int32_t token) const { return tokenizer_.IsSpecial(token); }

 private:
  const Tokenizer& tokenizer_;
  bool as_token_ids_;
};

// Chat: [{"token", "logprob", "bytes", "top_logprobs"}].
ResponseJson ChatLogprobs(const std::vector<TokenLogprob>& logprobs, const TokenSpelling& spelling);

// vLLM's "prompt_logprobs": null for the first token, then {"ID": {"logprob", "rank",
// "decoded_token"}}.
ResponseJson PromptLogprobs(const std::vector<TokenLogprob>& logprobs, int32_t num_top,
                            const TokenSpelling& spelling);

// The legacy object of text completions: tokens, token_logprobs, top_logprobs, text_offset (in
// characters of the choice's text). One per choice, as offsets go on over the pieces of a stream.
class LegacyLogprobs {
 public:
  LegacyLogprobs(const TokenSpelling& spelling, int32_t num_top, bool skip_special_tokens)
      : spelling_(spelling), num_top_(num_top), skip_special_tokens_(skip_special_tokens) {}

  // The echoed prompt. `logprobs` are of tokens[1..]; the first token has none.
  void AddPrompt(std::string_view text, const std::vector<int32_t>& tokens,
                 const std::vector<TokenLogprob>& logprobs);
  void Add(const std::vector<TokenLogprob>& logprobs);
  // What was added since the last Take.
  ResponseJson Take();

 private:
  void AddEntry(int32_t token, const TokenLogprob* logprob);

  TokenSpelling spelling_;
  int32_t num_top_;
  bool skip_special_tokens_;
  int64_t offset_ = 0;  // characters
  ResponseJson tokens_ = ResponseJson::array();
  ResponseJson token_logprobs_ = ResponseJson::array();
  ResponseJson top_logprobs_ = ResponseJson::array();
  ResponseJson text_offset_ = ResponseJson::array();
};

}  // namespace plumbline

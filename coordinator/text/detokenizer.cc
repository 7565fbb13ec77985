#include "coordinator/text/detokenizer.h"

namespace plumbline {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, const DecodeOptions& options)
    : tokenizer_(&tokenizer), options_(options), state_(tokenizer.decoder().NewState()) {}

std::string Detokenizer::Push(int32_t id) {
  std::string text;
  std::string_view token = tokenizer_->TokenString(id);
  if (token.empty() || (options_.skip_special_tokens && tokenizer_->IsSpecial(id))) return text;
  tokenizer_->decoder().Push(token, state_, text);
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  tokenizer_->decoder().Finish(state_, text);
  return text;
}

}  // namespace plumbline

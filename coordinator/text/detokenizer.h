// Detokenizer: turns a stream of token ids into a stream of text. What Push and Finish return, put
// together, is exactly Tokenizer::Decode of all ids; no piece ends inside a character. Text is held
// back only while later tokens can still change it: at most three bytes for byte-level
// vocabularies, a run of byte tokens for byte-fallback ones (there a run that is not UTF-8 as a
// whole becomes one U+FFFD per byte). One per generated sequence; not thread-safe. The tokenizer
// must outlive it.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/text/decoder.h"
#include "coordinator/text/tokenizer.h"

namespace plumbline {

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, const DecodeOptions& options = {});

  // The text that `id` completes; often empty.
  std::string Push(int32_t id);
  // The rest. Afterwards the detokenizer is as new.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  Decoder::State state_;
};

}  // namespace plumbline

// TextStream: tokens of one request -> the text its client sees: detokenized incrementally, ended
// by stop strings. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/detokenizer.h"

namespace plumbline {

// Finds the first stop string in a text that arrives in pieces: the one that is complete first; of
// several that end there, the longest. Where the pieces are cut does not matter. Text that may be
// the beginning of a stop string is held back.
class StopMatcher {
 public:
  // REQUIRES: no stop string is empty. include_stop: the stop string is part of the text.
  StopMatcher(std::vector<std::string> stops, bool include_stop);

  // Text that may be shown now. After a match: nothing more.
  std::string Push(std::string_view text);
  // No more text will come: what was held back.
  std::string Finish();

  bool matched() const { return !match_.empty(); }
  const std::string& match() const { return match_; }  // empty until matched

 private:
  std::vector<std::string> stops_;
  bool include_stop_;
  std::string held_;
  std::string match_;
};

class TextStream {
 public:
  // The tokenizer outlives the stream.
  TextStream(const Tokenizer& tokenizer, bool skip_special_tokens, std::vector<std::string> stops,
             bool include_stop);

  std::string Push(int32_t token);
  std::string Finish();
  bool stopped() const { return matcher_.matched(); }
  const std::string& stop_match() const { return matcher_.match(); }

 private:
  Detokenizer detokenizer_;
  StopMatcher matcher_;
};

}  // namespace plumbline

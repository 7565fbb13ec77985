#include "coordinator/engine/text_stream.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace plumbline {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  for (const std::string& stop : stops_) PL_CHECK(!stop.empty());
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched()) return "";
  held_ += text;
  size_t match_end = std::string::npos;
  const std::string* first = nullptr;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (first == nullptr || end < match_end || (end == match_end && stop.size() > first->size())) {
      first = &stop;
      match_end = end;
    }
  }
  if (first != nullptr) {
    match_ = *first;
    held_.resize(include_stop_ ? match_end : match_end - match_.size());
    return std::exchange(held_, {});
  }
  size_t num_held = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(held_.size(), stop.size() - 1); n > num_held; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) num_held = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - num_held);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

TextStream::TextStream(const Tokenizer& tokenizer, bool skip_special_tokens,
                       std::vector<std::string> stops, bool include_stop)
    : detokenizer_(tokenizer, DecodeOptions{.skip_special_tokens = skip_special_tokens}),
      matcher_(std::move(stops), include_stop) {}

std::string TextStream::Push(int32_t token) { return matcher_.Push(detokenizer_.Push(token)); }

std::string TextStream::Finish() {
  std::string text = matcher_.Push(detokenizer_.Finish());
  if (!matcher_.matched()) text += matcher_.Finish();
  return text;
}

}  // namespace plumbline

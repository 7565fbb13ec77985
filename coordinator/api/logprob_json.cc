#include "coordinator/api/logprob_json.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/unicode.h"

namespace plumbline {
namespace {

// JSON has no infinity. Clients of OpenAI know this as "not at all".
constexpr float kLowestLogprob = -9999;

float Printable(float logprob) { return std::max(logprob, kLowestLogprob); }

bool IsUtf8(std::string_view bytes) { return ValidUtf8Prefix(bytes) == bytes.size(); }

int64_t CountCharacters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) >> 6) != 0b10; });
}

ResponseJson ByteList(const std::string& bytes) {
  ResponseJson list = ResponseJson::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

size_t NumTop(const TokenLogprob& entry, int32_t limit) {
  return std::min(entry.top_tokens.size(), static_cast<size_t>(std::max(limit, 0)));
}

}  // namespace

std::string TokenSpelling::Bytes(int32_t token) const {
  std::string bytes = tokenizer_.TokenBytes(token);
  return bytes.empty() ? std::string(tokenizer_.TokenString(token)) : bytes;
}

std::string TokenSpelling::Text(int32_t token) const {
  if (as_token_ids_) return absl::StrCat("token_id:", token);
  std::string bytes = Bytes(token);
  if (IsUtf8(bytes)) return bytes;
  std::string text = "bytes:";
  for (const char c : bytes) absl::StrAppendFormat(&text, "\\x%02x", static_cast<unsigned char>(c));
  return text;
}

ResponseJson ChatLogprobs(const std::vector<TokenLogprob>& logprobs,
                          const TokenSpelling& spelling) {
  const auto entry_of = [&spelling](int32_t token, float logprob) {
    ResponseJson entry;
    entry["token"] = spelling.Text(token);
    entry["logprob"] = Printable(logprob);
    entry["bytes"] = ByteList(spelling.Bytes(token));
    return entry;
  };
  ResponseJson content = ResponseJson::array();
  for (const TokenLogprob& logprob : logprobs) {
    ResponseJson entry = entry_of(logprob.token, logprob.logprob);
    ResponseJson top = ResponseJson::array();
    for (size_t i = 0; i < logprob.top_tokens.size(); ++i) {
      top.push_back(entry_of(logprob.top_tokens[i], logprob.top_logprobs[i]));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return content;
}

ResponseJson PromptLogprobs(const std::vector<TokenLogprob>& logprobs, int32_t num_top,
                            const TokenSpelling& spelling) {
  ResponseJson list = ResponseJson::array();
  list.push_back(nullptr);
  for (const TokenLogprob& logprob : logprobs) {
    ResponseJson alternatives = ResponseJson::object();
    const auto add = [&](int32_t token, float value, int64_t rank) {
      ResponseJson entry;
      entry["logprob"] = Printable(value);
      entry["rank"] = rank;
      entry["decoded_token"] = spelling.Text(token);
      alternatives[std::to_string(token)] = std::move(entry);
    };
    add(logprob.token, logprob.logprob, logprob.rank);
    for (size_t i = 0; i < NumTop(logprob, num_top); ++i) {
      if (logprob.top_tokens[i] == logprob.token) continue;
      add(logprob.top_tokens[i], logprob.top_logprobs[i], static_cast<int64_t>(i) + 1);
    }
    list.push_back(std::move(alternatives));
  }
  return list;
}

void LegacyLogprobs::AddEntry(int32_t token, const TokenLogprob* logprob) {
  tokens_.push_back(spelling_.Text(token));
  text_offset_.push_back(offset_);
  if (logprob == nullptr) {
    token_logprobs_.push_back(nullptr);
    top_logprobs_.push_back(nullptr);
    return;
  }
  token_logprobs_.push_back(Printable(logprob->logprob));
  ResponseJson top = ResponseJson::object();
  for (size_t i = 0; i < NumTop(*logprob, num_top_); ++i) {
    // Two tokens may be spelt alike; the likelier one came first and stays.
    top.emplace(spelling_.Text(logprob->top_tokens[i]), Printable(logprob->top_logprobs[i]));
  }
  top.emplace(spelling_.Text(token), Printable(logprob->logprob));
  top_logprobs_.push_back(std::move(top));
}

void LegacyLogprobs::AddPrompt(std::string_view text, const std::vector<int32_t>& tokens,
                               const std::vector<TokenLogprob>& logprobs) {
  size_t position = 0;  // in bytes of `text`
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool has_logprob = i > 0 && i - 1 < logprobs.size();
    AddEntry(tokens[i], has_logprob ? &logprobs[i - 1] : nullptr);
    // A token need not stand in the text: a special token that the tokenizer put there, a leading
    // space it assumed.
    std::string bytes = spelling_.Bytes(tokens[i]);
    const std::string_view rest = text.substr(position);
    if (!rest.starts_with(bytes)) {
      if (spelling_.IsSpecial(tokens[i])) continue;
      if (offset_ == 0 && bytes.starts_with(' ')) bytes.erase(0, 1);
    }
    const std::string_view covered = rest.substr(0, bytes.size());
    position += covered.size();
    offset_ += CountCharacters(covered);
  }
  offset_ = CountCharacters(text);
}

void LegacyLogprobs::Add(const std::vector<TokenLogprob>& logprobs) {
  for (const TokenLogprob& logprob : logprobs) {
    AddEntry(logprob.token, &logprob);
    if (skip_special_tokens_ && spelling_.IsSpecial(logprob.token)) continue;
    offset_ += CountCharacters(spelling_.Bytes(logprob.token));
  }
}

ResponseJson LegacyLogprobs::Take() {
  ResponseJson result;
  for (auto [name, list] : {std::pair("tokens", &tokens_),
                            {"token_logprobs", &token_logprobs_},
                            {"top_logprobs", &top_logprobs_},
                            {"text_offset", &text_offset_}}) {
    result[name] = std::move(*list);
    *list = ResponseJson::array();
  }
  return result;
}

}  // namespace plumbline

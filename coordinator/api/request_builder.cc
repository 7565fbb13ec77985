#include "coordinator/api/request_builder.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/api/api_error.h"
#include "coordinator/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

struct Range {
  double min;
  double max;
};

// Also refuses NaN.
absl::Status CheckRange(const char* field, double value, const Range& range) {
  if (value >= range.min && value <= range.max) return absl::OkStatus();
  return InvalidField(
      field, absl::StrCat("must be between ", range.min, " and ", range.max, ", not ", value));
}

// Prefix, suffix and middle markers, as published vocabularies spell them.
constexpr const char* kInfillMarkers[][3] = {
    {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"},  // Qwen
    {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"},        // StarCoder
};

}  // namespace

RequestOwner OwnerOf(const Caller& caller) {
  return {.key_id = caller.key_id, .name = caller.name, .priority = caller.priority, .share = caller.share};
}

RequestBuilder::RequestBuilder(const ServedModel& model) : model_(model) {}

absl::Status RequestBuilder::CheckModel(const std::string& name) const {
  if (name.empty() || name == model_.name) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("the model '", name, "' does not exist; this server has '", model_.name, "'"));
}

absl::StatusOr<std::vector<int32_t>> RequestBuilder::EncodeText(
    std::string_view text, const std::string& field, const EncodeOptions& options) const {
  absl::StatusOr<std::vector<int32_t>> tokens = model_.text->tokenizer->Encode(text, options);
  if (!tokens.ok()) return InvalidField(field, std::string(tokens.status().message()));
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> RequestBuilder::EncodeChat(
    const ChatRequest& chat, const EncodeOptions& options) const {
  if (!model_.text->chat_template) {
    return InvalidField("messages", absl::StrCat("the model '", model_.name,
                                                 "' has no chat template; start the server with "
                                                 "--chat-template or use /v1/completions"));
  }
  // Whatever is wrong, limits of the template included, is wrong with the request.
  const absl::StatusOr<std::string> text =
      plumbline::RenderChat(*model_.text->chat_template, chat, model_.text->tokens);
  if (!text.ok()) {
    return InvalidField("messages",
                        absl::StrCat("chat template: ", std::string(text.status().message())));
  }
  return EncodeText(*text, "messages", options);
}

absl::StatusOr<std::vector<int32_t>> RequestBuilder::EncodeInfill(
    const InfillPrompt& prompt) const {
  const Tokenizer& tokenizer = *model_.text->tokenizer;
  for (const auto& markers : kInfillMarkers) {
    const std::optional<int32_t> prefix = tokenizer.IdOf(markers[0]);
    const std::optional<int32_t> suffix = tokenizer.IdOf(markers[1]);
    const std::optional<int32_t> middle = tokenizer.IdOf(markers[2]);
    if (!prefix || !suffix || !middle) continue;
    std::vector<int32_t> result = {*prefix};
    PL_ASSIGN_OR_RETURN(const std::vector<int32_t> before, EncodeText(prompt.prefix, "prompt", {}));
    result.insert(result.end(), before.begin(), before.end());
    result.push_back(*suffix);
    PL_ASSIGN_OR_RETURN(const std::vector<int32_t> after, EncodeText(prompt.suffix, "suffix", {}));
    result.insert(result.end(), after.begin(), after.end());
    result.push_back(*middle);
    return result;
  }
  return InvalidField("suffix", absl::StrCat("the vocabulary of '", model_.name,
                                             "' has no fill-in-the-middle tokens"));
}

absl::Status RequestBuilder::CheckTokens(std::span<const int32_t> tokens,
                                         const std::string& field) const {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= model_.vocab_size) {
      return InvalidField(field, absl::StrCat("token id ", token, " is not in the vocabulary [0, ",
                                              model_.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status RequestBuilder::CheckSampling(const SamplingParams& sampling) const {
  PL_RETURN_IF_ERROR(CheckRange("temperature", sampling.temperature, {0, 2}));
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return InvalidField("top_p",
                        absl::StrCat("must be above 0 and at most 1, not ", sampling.top_p));
  }
  if (sampling.top_k < 0) {
    return InvalidField("top_k", absl::StrCat("must be at least 1, or 0 for off, not ", sampling.top_k));
  }
  PL_RETURN_IF_ERROR(CheckRange("min_p", sampling.min_p, {0, 1}));
  if (!(sampling.repetition_penalty > 0 && sampling.repetition_penalty <= 10)) {
    return InvalidField("repetition_penalty", absl::StrCat("must be above 0 and at most 10, not ",
                                                           sampling.repetition_penalty));
  }
  PL_RETURN_IF_ERROR(CheckRange("presence_penalty", sampling.presence_penalty, {-2, 2}));
  PL_RETURN_IF_ERROR(CheckRange("frequency_penalty", sampling.frequency_penalty, {-2, 2}));
  if (sampling.logit_bias.size() > kMaxLogitBiases) {
    return InvalidField("logit_bias", absl::StrCat("has more than ", kMaxLogitBiases, " entries"));
  }
  for (const auto& [token, bias] : sampling.logit_bias) {
    PL_RETURN_IF_ERROR(CheckTokens({&token, 1}, "logit_bias"));
    PL_RETURN_IF_ERROR(CheckRange("logit_bias", bias, {-100, 100}));
  }
  return absl::OkStatus();
}

absl::Status RequestBuilder::CheckGeneration(const GenerationRequest& request) const {
  PL_RETURN_IF_ERROR(CheckSampling(request.sampling));
  if (request.stop.size() > kMaxStops) {
    return InvalidField("stop", absl::StrCat("has more than ", kMaxStops, " strings"));
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return InvalidField("stop", "a stop string must not be empty");
    if (stop.size() > kMaxStopBytes) {
      return InvalidField("stop",
                          absl::StrCat("a stop string is longer than ", kMaxStopBytes, " bytes"));
    }
  }
  if (request.stop_token_ids.size() > kMaxLogitBiases) {
    return InvalidField("stop_token_ids",
                        absl::StrCat("has more than ", kMaxLogitBiases, " entries"));
  }
  PL_RETURN_IF_ERROR(CheckTokens(request.stop_token_ids, "stop_token_ids"));
  if (request.num_top_logprobs > kMaxTopLogprobs) {
    return InvalidField("logprobs", absl::StrCat("at most ", kMaxTopLogprobs, " alternatives"));
  }
  if (request.num_prompt_logprobs > kMaxTopLogprobs) {
    return InvalidField("prompt_logprobs",
                        absl::StrCat("at most ", kMaxTopLogprobs, " alternatives"));
  }
  return absl::OkStatus();
}

absl::Status RequestBuilder::CheckChoices(int64_t n) const {
  if (n >= 1 && n <= kMaxChoices) return absl::OkStatus();
  return InvalidField("n", absl::StrCat("must be between 1 and ", kMaxChoices, ", not ", n));
}

absl::StatusOr<int64_t> RequestBuilder::FitMaxTokens(int64_t prompt_tokens,
                                                     std::optional<int64_t> max_tokens) const {
  if (max_tokens && *max_tokens < 0) {
    return InvalidField("max_tokens", absl::StrCat("must not be negative, is ", *max_tokens));
  }
  const int64_t left = model_.max_model_len - prompt_tokens;
  const std::string limit =
      absl::StrCat("this model's maximum context length is ", model_.max_model_len, " tokens");
  if (left < 0 || (left == 0 && max_tokens.value_or(1) > 0)) {
    return InvalidField(
        "prompt", absl::StrCat(limit, ", the prompt has ", prompt_tokens, "; shorten the prompt"));
  }
  if (!max_tokens) return left;
  if (*max_tokens > left) {
    return InvalidField(
        "max_tokens", absl::StrCat(limit, ", the prompt has ", prompt_tokens, " and ", *max_tokens,
                                   " more were asked for; at most ", left, " fit"));
  }
  return *max_tokens;
}

uint64_t RandomSeed() {
  thread_local std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace plumbline

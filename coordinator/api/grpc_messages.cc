#include "coordinator/api/grpc_messages.h"

#include <optional>
#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/openai_types.h"
#include "coordinator/api/request_fields.h"
#include "proto/inference.pb.h"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

SamplingParams SamplingOf(const v1::Sampling& from, const SamplingParams& defaults) {
  SamplingParams to = defaults;
  if (from.has_temperature()) to.temperature = from.temperature();
  if (from.has_top_p()) to.top_p = from.top_p();
  if (from.has_top_k()) to.top_k = from.top_k();
  if (from.has_min_p()) to.min_p = from.min_p();
  to.seed = from.has_seed() ? from.seed() : RandomSeed();
  if (from.has_presence_penalty()) to.presence_penalty = from.presence_penalty();
  if (from.has_frequency_penalty()) to.frequency_penalty = from.frequency_penalty();
  if (from.has_repetition_penalty()) to.repetition_penalty = from.repetition_penalty();
  for (const auto& [token, bias] : from.logit_bias()) to.logit_bias.emplace_back(token, bias);
  return to;
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const RequestBuilder& builder,
                                                const v1::Chat& chat) {
  Json messages = Json::array();
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({{"role", message.role()}, {"content", message.content()}});
  }
  PL_RETURN_IF_ERROR(CheckMessages(messages));
  ChatRequest request = {.messages = &messages};
  Json tools;
  if (!chat.tools_json().empty()) {
    PL_ASSIGN_OR_RETURN(tools, ParseJson(chat.tools_json(), "tools_json"));
    PL_RETURN_IF_ERROR(CheckTools(tools));
    if (!tools.empty()) request.tools = &tools;
  }
  Json arguments;
  if (!chat.template_arguments_json().empty()) {
    PL_ASSIGN_OR_RETURN(arguments,
                        ParseJson(chat.template_arguments_json(), "template_arguments_json"));
    if (!arguments.is_object()) {
      return InvalidField("template_arguments_json", "must be a JSON object");
    }
    request.chat_template_kwargs = &arguments;
  }
  return builder.EncodeChat(request, {});
}

// Of Generate's and Score's prompts.
template <typename Request>
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const RequestBuilder& builder,
                                                  const Request& request) {
  std::vector<int32_t> tokens;
  if (request.has_tokens()) {
    tokens.assign(request.tokens().ids().begin(), request.tokens().ids().end());
    PL_RETURN_IF_ERROR(builder.CheckTokens(tokens, "tokens"));
  } else if (request.has_text()) {
    PL_ASSIGN_OR_RETURN(tokens,
                        builder.EncodeText(request.text(), "text", {.add_special_tokens = true}));
  } else if constexpr (std::is_same_v<Request, v1::GenerateRequest>) {
    if (!request.has_chat()) return InvalidField("prompt", "is required");
    PL_ASSIGN_OR_RETURN(tokens, EncodeChat(builder, request.chat()));
  } else {
    return InvalidField("prompt", "is required");
  }
  if (tokens.empty()) return InvalidField("prompt", "has no tokens");
  return tokens;
}

}  // namespace

absl::StatusOr<std::vector<GenerationRequest>> BuildGenerate(const RequestBuilder& builder,
                                                             const v1::GenerateRequest& from) {
  PL_RETURN_IF_ERROR(builder.CheckModel(from.model()));
  const int32_t n = from.n() == 0 ? 1 : from.n();
  PL_RETURN_IF_ERROR(builder.CheckChoices(n));
  GenerationRequest request;
  request.sampling = SamplingOf(from.sampling(), builder.model().sampling_defaults);
  request.stop.assign(from.stop().begin(), from.stop().end());
  request.ignore_eos = from.ignore_eos();
  if (from.has_logprobs()) {
    if (from.logprobs() < 0) return InvalidField("logprobs", "must not be negative");
    request.num_top_logprobs = from.logprobs();
  }
  PL_RETURN_IF_ERROR(builder.CheckGeneration(request));
  PL_ASSIGN_OR_RETURN(request.prompt, EncodePrompt(builder, from));
  std::optional<int64_t> max_tokens;
  if (from.has_max_tokens()) max_tokens = from.max_tokens();
  if (max_tokens == 0) return InvalidField("max_tokens", "must be at least 1; see Score");
  PL_ASSIGN_OR_RETURN(
      request.max_tokens,
      builder.FitMaxTokens(static_cast<int64_t>(request.prompt.size()), max_tokens));
  std::vector<GenerationRequest> requests;
  for (int32_t i = 0; i < n; ++i) {
    requests.push_back(request);
    requests.back().id = absl::StrCat("grpc/", i);
    requests.back().sampling.seed += static_cast<uint64_t>(i);
  }
  return requests;
}

absl::StatusOr<GenerationRequest> BuildScore(const RequestBuilder& builder,
                                             const v1::ScoreRequest& from) {
  PL_RETURN_IF_ERROR(builder.CheckModel(from.model()));
  if (from.top_logprobs() < 0) return InvalidField("top_logprobs", "must not be negative");
  GenerationRequest request;
  request.id = "grpc/score";
  request.num_prompt_logprobs = from.top_logprobs();
  PL_RETURN_IF_ERROR(builder.CheckGeneration(request));
  PL_ASSIGN_OR_RETURN(request.prompt, EncodePrompt(builder, from));
  PL_RETURN_IF_ERROR(builder.FitMaxTokens(static_cast<int64_t>(request.prompt.size()), 0).status());
  return request;
}

absl::StatusOr<std::vector<int32_t>> EncodeTokenize(const RequestBuilder& builder,
                                                    const v1::TokenizeRequest& from) {
  if (from.has_chat()) return EncodeChat(builder, from.chat());
  return builder.EncodeText(from.text(), "text", {.add_special_tokens = true});
}

void Fill(const TokenLogprob& from, v1::TokenInfo& to) {
  to.set_id(from.token);
  to.set_logprob(from.logprob);
  to.set_rank(from.rank);
  to.mutable_top_ids()->Add(from.top_tokens.begin(), from.top_tokens.end());
  to.mutable_top_logprobs()->Add(from.top_logprobs.begin(), from.top_logprobs.end());
}

}  // namespace plumbline

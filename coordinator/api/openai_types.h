// The requests of the OpenAI interface, as structs, and their parsing. Parsing checks names and
// types; ranges that the gRPC interface shares are RequestBuilder's. Errors are INVALID_ARGUMENT
// and name the field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/engine/engine.h"
#include "nlohmann/json.hpp"

namespace plumbline {

// What chat and text completions have in common.
struct CompletionFields {
  std::string model;
  GenerationRequest generation;  // all but prompt and max_tokens
  bool has_seed = false;
  std::optional<int64_t> max_tokens;
  absl::Duration timeout = absl::InfiniteDuration();  // from the request's arrival
  int64_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool add_special_tokens = false;          // the tokenizer's own, e.g. a leading BOS
  bool return_tokens_as_token_ids = false;  // "token_id:17" for token strings in logprobs
};

// A conversation and how it is rendered. Also the body of /tokenize.
struct ChatFields {
  nlohmann::ordered_json messages;
  nlohmann::ordered_json tools;      // array, or null
  nlohmann::ordered_json arguments;  // of the template, an object, or null
  bool add_generation_prompt = true;
};

struct ChatCompletionRequest {
  CompletionFields common;
  ChatFields chat;
};

struct TextPrompt {
  std::string text;
  std::vector<int32_t> tokens;
  bool is_tokens = false;
};

struct CompletionRequest {
  CompletionFields common;
  std::vector<TextPrompt> prompts;
  bool echo = false;
  int32_t num_prompt_logprobs =
      -1;  // of "prompt_logprobs"; generation has the larger of this and what echo needs
  std::optional<std::string> suffix;
};

struct TokenizeRequest {
  std::string model;
  std::optional<std::string> prompt;  // or else:
  ChatFields chat;
  bool add_special_tokens = false;
  bool return_token_strings = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

// `defaults` are the sampling parameters of a request that names none.
absl::StatusOr<ChatCompletionRequest> ParseChatCompletionRequest(std::string_view body,
                                                                 const SamplingParams& defaults);
absl::StatusOr<CompletionRequest> ParseCompletionRequest(std::string_view body,
                                                         const SamplingParams& defaults);
absl::StatusOr<TokenizeRequest> ParseTokenizeRequest(std::string_view body);
absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body);

// Of gRPC's Chat message too: what messages and tools must look like.
absl::Status CheckMessages(const nlohmann::ordered_json& messages);
absl::Status CheckTools(const nlohmann::ordered_json& tools);

}  // namespace plumbline

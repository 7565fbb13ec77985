#include "coordinator/api/openai_types.h"

#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/request_fields.h"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kDefaultCompletionTokens = 16;  // OpenAI's

void ReadLogitBias(RequestFields& fields, std::vector<std::pair<int32_t, float>>* biases) {
  const Json* json = fields.Find("logit_bias");
  if (json == nullptr) return;
  if (!json->is_object()) return fields.Fail("logit_bias", "must map token ids to numbers");
  for (const auto& item : json->items()) {
    int32_t token = 0;
    if (!absl::SimpleAtoi(item.key(), &token) || !item.value().is_number()) {
      return fields.Fail("logit_bias", "must map token ids to numbers; see '" + item.key() + "'");
    }
    const auto is_token = [token](const auto& entry) { return entry.first == token; };
    if (std::any_of(biases->begin(), biases->end(), is_token)) {
      return fields.Fail("logit_bias", absl::StrCat("token id ", token, " is given twice"));
    }
    biases->emplace_back(token, static_cast<float>(item.value().get<double>()));
    if (biases->size() > 4096) return fields.Fail("logit_bias", "has too many entries");
  }
}

void ReadStreamOptions(RequestFields& fields, CompletionFields& request) {
  fields.Read("stream", &request.stream);
  const Json* json = fields.Find("stream_options");
  if (json == nullptr) return;
  if (!json->is_object()) return fields.Fail("stream_options", "must be an object");
  if (!request.stream) return fields.Fail("stream_options", "is only allowed with stream: true");
  RequestFields options(*json);
  options.Read("include_usage", &request.include_usage);
  options.Ignore({"include_obfuscation"});
  const absl::Status status = options.Finish();
  if (!status.ok()) {
    fields.Fail("stream_options." + FieldOf(status), std::string(status.message()));
  }
}

// Reads all that both kinds share.
void ReadCommon(RequestFields& fields, CompletionFields& request) {
  SamplingParams& sampling = request.generation.sampling;
  fields.Read("model", &request.model);
  fields.Read("temperature", &sampling.temperature);
  fields.Read("top_p", &sampling.top_p);
  fields.Read("top_k", &sampling.top_k);
  if (sampling.top_k == -1) sampling.top_k = 0;  // how vLLM's clients say "off"
  fields.Read("min_p", &sampling.min_p);
  fields.Read("repetition_penalty", &sampling.repetition_penalty);
  fields.Read("presence_penalty", &sampling.presence_penalty);
  fields.Read("frequency_penalty", &sampling.frequency_penalty);
  ReadLogitBias(fields, &sampling.logit_bias);
  std::optional<int64_t> seed;
  fields.Read("seed", &seed);
  request.has_seed = seed.has_value();
  sampling.seed = static_cast<uint64_t>(seed.value_or(0));  // a negative one is as good as any

  std::optional<int64_t> n;
  fields.Read("n", &n);
  request.n = n.value_or(1);
  fields.Read("max_tokens", &request.max_tokens);
  float timeout = std::numeric_limits<float>::infinity();
  fields.Read("timeout", &timeout);
  if (!(timeout > 0)) fields.Fail("timeout", "must be more than 0 seconds");
  request.timeout = absl::Seconds(timeout);
  fields.ReadStrings("stop", &request.generation.stop);
  fields.ReadTokens("stop_token_ids", &request.generation.stop_token_ids);
  fields.Read("include_stop_str_in_output", &request.generation.include_stop);
  fields.Read("ignore_eos", &request.generation.ignore_eos);
  fields.Read("skip_special_tokens", &request.generation.skip_special_tokens);
  fields.Read("add_special_tokens", &request.add_special_tokens);
  fields.Read("return_tokens_as_token_ids", &request.return_tokens_as_token_ids);
  fields.Read("prompt_logprobs", &request.generation.num_prompt_logprobs);
  if (request.generation.num_prompt_logprobs < -1) {
    fields.Fail("prompt_logprobs", "must not be negative");
  }
  ReadStreamOptions(fields, request);
  if (request.stream && fields.Has("prompt_logprobs")) {
    fields.Fail("prompt_logprobs", "is not available with stream: true");
  }
  fields.Ignore({"user", "store", "metadata", "service_tier", "safety_identifier",
                 "prompt_cache_key", "prompt_cache_retention", "request_id", "priority"});
  fields.AcceptOnly("min_tokens", 0);
  fields.AcceptOnly("use_beam_search", false);
  fields.AcceptOnly("length_penalty", 1);
  fields.AcceptOnly("truncate_prompt_tokens", nullptr);
  fields.AcceptOnly("spaces_between_special_tokens", true);
}

void ReadChat(RequestFields& fields, ChatFields& chat) {
  const Json* messages = fields.Find("messages");
  if (messages == nullptr) return fields.Fail("messages", "is required");
  chat.messages = *messages;
  if (const Json* tools = fields.Find("tools"); tools != nullptr && !tools->empty()) {
    chat.tools = *tools;
  }
  if (const Json* arguments = fields.Find("chat_template_kwargs"); arguments != nullptr) {
    if (!arguments->is_object()) fields.Fail("chat_template_kwargs", "must be an object");
    chat.arguments = *arguments;
  }
  fields.Read("add_generation_prompt", &chat.add_generation_prompt);
  fields.AcceptOnly("continue_final_message", false);
  fields.AcceptOnly("chat_template", nullptr);
}

// Lists of tools as OpenAI has them; a choice other than none and auto forces the output, which is
// not supported.
void ReadToolChoice(RequestFields& fields, ChatFields& chat) {
  if (const Json* choice = fields.Find("tool_choice"); choice != nullptr) {
    if (*choice == "none") {
      chat.tools = nullptr;  // the surest way that none is called
    } else if (*choice != "auto") {
      fields.Fail("tool_choice",
                  "is not supported yet with values other than \"none\" and \"auto\"");
    }
  }
  fields.AcceptOnly("functions", nullptr);
  fields.AcceptOnly("function_call", nullptr);
  fields.Ignore({"parallel_tool_calls"});
}

void ReadResponseFormat(RequestFields& fields) {
  const Json* format = fields.Find("response_format");
  if (format == nullptr) return;
  if (!format->is_object() || !format->contains("type")) {
    return fields.Fail("response_format", "must be an object with a \"type\"");
  }
  if ((*format)["type"] != "text") {
    fields.Fail("response_format", "is not supported yet with types other than \"text\"");
  }
}

void ReadChatLogprobs(RequestFields& fields, GenerationRequest& generation) {
  bool is_wanted = false;
  fields.Read("logprobs", &is_wanted);
  std::optional<int32_t> alternatives;
  fields.Read("top_logprobs", &alternatives);
  if (alternatives && !is_wanted) fields.Fail("top_logprobs", "needs logprobs: true");
  if (alternatives && *alternatives < 0) fields.Fail("top_logprobs", "must not be negative");
  if (is_wanted) generation.num_top_logprobs = alternatives.value_or(0);
}

absl::Status CheckContent(const Json& content, const std::string& path) {
  if (content.is_string()) return absl::OkStatus();
  if (!content.is_array()) return InvalidField(path, "must be a string or a list of text parts");
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string part_path = absl::StrCat(path, "[", i, "]");
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string()) {
      return InvalidField(part_path, "must be an object with a \"type\"");
    }
    if (part["type"] != "text") {
      return InvalidField(part_path + ".type",
                          "'" + part["type"].get<std::string>() +
                              "' is not supported: this server takes text only");
    }
    if (!part.contains("text") || !part["text"].is_string()) {
      return InvalidField(part_path + ".text", "must be a string");
    }
  }
  return absl::OkStatus();
}

// One prompt from an item of a list, or from the whole field.
absl::StatusOr<TextPrompt> ReadPrompt(const Json& json) {
  if (json.is_string()) return TextPrompt{.text = json.get<std::string>()};
  PL_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, TokensOf(json, "prompt"));
  return TextPrompt{.tokens = std::move(tokens), .is_tokens = true};
}

absl::StatusOr<std::vector<TextPrompt>> ReadPrompts(RequestFields& fields) {
  const Json* json = fields.Find("prompt");
  if (json == nullptr) return InvalidField("prompt", "is required");
  if (!json->is_string() && !json->is_array()) {
    return InvalidField("prompt",
                        "must be a string, a list of strings, a list of token ids or a "
                        "list of lists of token ids");
  }
  if (json->is_array() && json->empty()) return InvalidField("prompt", "must not be empty");
  std::vector<TextPrompt> prompts;
  if (json->is_string() || json->front().is_number()) {
    PL_ASSIGN_OR_RETURN(TextPrompt prompt, ReadPrompt(*json));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  for (const Json& item : *json) {
    PL_ASSIGN_OR_RETURN(TextPrompt prompt, ReadPrompt(item));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

void ReadCompletionLogprobs(RequestFields& fields, CompletionRequest& request) {
  GenerationRequest& generation = request.common.generation;
  fields.Read("logprobs", &generation.num_top_logprobs);
  if (generation.num_top_logprobs < -1) fields.Fail("logprobs", "must not be negative");
  request.num_prompt_logprobs = generation.num_prompt_logprobs;
  if (request.echo) {
    generation.num_prompt_logprobs =
        std::max(generation.num_prompt_logprobs, generation.num_top_logprobs);
  }
}

}  // namespace

absl::Status CheckMessages(const Json& messages) {
  if (!messages.is_array() || messages.empty()) {
    return InvalidField("messages", "must be a list of at least one message");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string path = absl::StrCat("messages[", i, "]");
    const Json& message = messages[i];
    if (!message.is_object()) return InvalidField(path, "must be an object");
    if (!message.contains("role") || !message["role"].is_string()) {
      return InvalidField(path + ".role", "must be a string");
    }
    const auto content = message.find("content");
    if (content != message.end() && !content->is_null()) {
      PL_RETURN_IF_ERROR(CheckContent(*content, path + ".content"));
    } else if (message["role"] != "assistant") {
      return InvalidField(path + ".content", "is required");
    }
    const auto calls = message.find("tool_calls");
    if (calls != message.end() && !calls->is_null()) {
      const auto is_object = [](const Json& call) { return call.is_object(); };
      if (!calls->is_array() || !std::all_of(calls->begin(), calls->end(), is_object)) {
        return InvalidField(path + ".tool_calls", "must be a list of objects");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTools(const Json& tools) {
  if (tools.is_null()) return absl::OkStatus();
  if (!tools.is_array()) return InvalidField("tools", "must be a list");
  for (size_t i = 0; i < tools.size(); ++i) {
    const Json& tool = tools[i];
    const bool is_function = tool.is_object() && tool.contains("type") &&
                             tool["type"] == "function" && tool.contains("function") &&
                             tool["function"].is_object();
    if (!is_function) {
      return InvalidField(absl::StrCat("tools[", i, "]"),
                          "must be {\"type\": \"function\", \"function\": {...}}");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatCompletionRequest> ParseChatCompletionRequest(std::string_view body,
                                                                 const SamplingParams& defaults) {
  PL_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  ChatCompletionRequest request;
  request.common.generation.sampling = defaults;
  RequestFields fields(json);
  ReadCommon(fields, request.common);
  std::optional<int64_t> max_completion_tokens;
  fields.Read("max_completion_tokens", &max_completion_tokens);
  if (max_completion_tokens) {
    if (request.common.max_tokens && *request.common.max_tokens != *max_completion_tokens) {
      fields.Fail("max_completion_tokens", "contradicts max_tokens");
    }
    request.common.max_tokens = max_completion_tokens;
  }
  if (request.common.max_tokens.value_or(1) < 1) fields.Fail("max_tokens", "must be at least 1");
  ReadChatLogprobs(fields, request.common.generation);
  ReadChat(fields, request.chat);
  ReadToolChoice(fields, request.chat);
  ReadResponseFormat(fields);
  PL_RETURN_IF_ERROR(fields.Finish());
  PL_RETURN_IF_ERROR(CheckMessages(request.chat.messages));
  PL_RETURN_IF_ERROR(CheckTools(request.chat.tools));
  return request;
}

absl::StatusOr<CompletionRequest> ParseCompletionRequest(std::string_view body,
                                                         const SamplingParams& defaults) {
  PL_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  CompletionRequest request;
  request.common.generation.sampling = defaults;
  request.common.add_special_tokens = true;
  request.common.max_tokens = kDefaultCompletionTokens;
  RequestFields fields(json);
  ReadCommon(fields, request.common);
  absl::StatusOr<std::vector<TextPrompt>> prompts = ReadPrompts(fields);
  if (!prompts.ok()) return prompts.status();
  request.prompts = *std::move(prompts);
  fields.Read("echo", &request.echo);
  fields.Read("suffix", &request.suffix);
  ReadCompletionLogprobs(fields, request);
  std::optional<int64_t> best_of;
  fields.Read("best_of", &best_of);
  if (best_of && *best_of != request.common.n) {
    fields.Fail("best_of", "is not supported unless it equals n");
  }
  if (request.common.max_tokens == 0 && !request.echo &&
      request.common.generation.num_prompt_logprobs < 0) {
    fields.Fail("max_tokens", "0 is only allowed with echo or prompt_logprobs");
  }
  if (request.suffix && request.echo) fields.Fail("echo", "is not supported with suffix");
  ReadResponseFormat(fields);
  PL_RETURN_IF_ERROR(fields.Finish());
  return request;
}

absl::StatusOr<TokenizeRequest> ParseTokenizeRequest(std::string_view body) {
  PL_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  TokenizeRequest request;
  RequestFields fields(json);
  fields.Read("model", &request.model);
  fields.Read("prompt", &request.prompt);
  if (request.prompt) {
    request.add_special_tokens = true;
  } else if (fields.Has("messages")) {
    ReadChat(fields, request.chat);
  } else {
    fields.Fail("prompt", "prompt or messages is required");
  }
  fields.Read("add_special_tokens", &request.add_special_tokens);
  fields.Read("return_token_strs", &request.return_token_strings);
  PL_RETURN_IF_ERROR(fields.Finish());
  if (!request.prompt) {
    PL_RETURN_IF_ERROR(CheckMessages(request.chat.messages));
    PL_RETURN_IF_ERROR(CheckTools(request.chat.tools));
  }
  return request;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body) {
  PL_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  DetokenizeRequest request;
  RequestFields fields(json);
  fields.Read("model", &request.model);
  if (!fields.Has("tokens")) fields.Fail("tokens", "is required");
  fields.ReadTokens("tokens", &request.tokens);
  PL_RETURN_IF_ERROR(fields.Finish());
  return request;
}

}  // namespace plumbline

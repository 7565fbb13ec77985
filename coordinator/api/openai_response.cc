#include "coordinator/api/openai_response.h"

#include <algorithm>
#include <map>
#include <utility>

#include "coordinator/api/logprob_json.h"

namespace plumbline {
namespace {

ResponseJson FinishReasonJson(FinishReason finish) {
  if (finish == FinishReason::kNone) return nullptr;
  return finish == FinishReason::kLength || finish == FinishReason::kTimeout ? "length" : "stop";
}

ResponseJson StopReasonJson(const GenerationOutput& output) {
  return output.stop_match.empty() ? ResponseJson() : ResponseJson(output.stop_match);
}

ResponseJson UsageJson(const Usage& usage) {
  ResponseJson json;
  json["prompt_tokens"] = usage.prompt_tokens;
  json["completion_tokens"] = usage.completion_tokens;
  json["total_tokens"] = usage.prompt_tokens + usage.completion_tokens;
  json["prompt_tokens_details"] = {{"cached_tokens", usage.cached_tokens}};
  return json;
}

ResponseJson Envelope(const ResponseOptions& options, const char* object) {
  ResponseJson json;
  json["id"] = options.id;
  json["object"] = object;
  json["created"] = options.created;
  json["model"] = options.model->name;
  json["system_fingerprint"] = options.model->fingerprint;
  return json;
}

ResponseJson StreamEnvelope(const ResponseOptions& options, const char* object,
                            ResponseJson choice) {
  ResponseJson json = Envelope(options, object);
  json["choices"] = ResponseJson::array({std::move(choice)});
  if (options.include_usage) json["usage"] = nullptr;
  return json;
}

ResponseJson UsageEnvelope(const ResponseOptions& options, const char* object, const Usage& usage) {
  ResponseJson json = Envelope(options, object);
  json["choices"] = ResponseJson::array();
  json["usage"] = UsageJson(usage);
  return json;
}

class ChatFormat final : public ResponseFormat {
 public:
  explicit ChatFormat(const ResponseOptions& options)
      : options_(options),
        spelling_(*options.model->text->tokenizer, options.return_tokens_as_token_ids) {}

  std::vector<ResponseJson> Chunks(int choice, const GenerationOutput& delta) override {
    std::vector<ResponseJson> chunks;
    ResponseJson content;
    if (!std::exchange(started_[choice], true)) {
      ResponseJson role = {{"role", "assistant"}, {"content", ""}};
      chunks.push_back(Chunk(choice, std::move(role), nullptr, GenerationOutput()));
    }
    if (!delta.text.empty() || !delta.logprobs.empty()) {
      content["content"] = delta.text;
      GenerationOutput unfinished;
      chunks.push_back(Chunk(choice, std::move(content), LogprobsOf(delta), unfinished));
    }
    if (delta.finish != FinishReason::kNone) {
      chunks.push_back(Chunk(choice, ResponseJson::object(), nullptr, delta));
    }
    return chunks;
  }

  ResponseJson UsageChunk(const Usage& usage) const override {
    return UsageEnvelope(options_, "chat.completion.chunk", usage);
  }

  ResponseJson Whole(const std::vector<GenerationOutput>& choices, const Usage& usage) override {
    ResponseJson json = Envelope(options_, "chat.completion");
    ResponseJson list = ResponseJson::array();
    for (size_t i = 0; i < choices.size(); ++i) {
      ResponseJson choice;
      choice["index"] = i;
      choice["message"] = {
          {"role", "assistant"}, {"content", choices[i].text}, {"refusal", nullptr}};
      choice["logprobs"] = LogprobsOf(choices[i]);
      choice["finish_reason"] = FinishReasonJson(choices[i].finish);
      choice["stop_reason"] = StopReasonJson(choices[i]);
      list.push_back(std::move(choice));
    }
    json["choices"] = std::move(list);
    json["usage"] = UsageJson(usage);
    if (!choices.empty() && !choices[0].prompt_logprobs.empty()) {
      const TokenLogprob& first = choices[0].prompt_logprobs.front();
      json["prompt_logprobs"] = PromptLogprobs(
          choices[0].prompt_logprobs, static_cast<int32_t>(first.top_tokens.size()), spelling_);
    }
    return json;
  }

 private:
  ResponseJson LogprobsOf(const GenerationOutput& output) const {
    if (output.logprobs.empty()) return nullptr;
    return {{"content", ChatLogprobs(output.logprobs, spelling_)}, {"refusal", nullptr}};
  }

  ResponseJson Chunk(int index, ResponseJson delta, ResponseJson logprobs,
                     const GenerationOutput& end) const {
    ResponseJson choice;
    choice["index"] = index;
    choice["delta"] = std::move(delta);
    choice["logprobs"] = std::move(logprobs);
    choice["finish_reason"] = FinishReasonJson(end.finish);
    if (end.finish != FinishReason::kNone) choice["stop_reason"] = StopReasonJson(end);
    return StreamEnvelope(options_, "chat.completion.chunk", std::move(choice));
  }

  const ResponseOptions options_;
  const TokenSpelling spelling_;
  std::map<int, bool> started_;
};

class CompletionFormat final : public ResponseFormat {
 public:
  explicit CompletionFormat(CompletionFormatOptions options)
      : options_(std::move(options)),
        spelling_(*options_.common.model->text->tokenizer,
                  options_.common.return_tokens_as_token_ids) {}

  std::vector<ResponseJson> Chunks(int choice, const GenerationOutput& delta) override {
    ResponseJson json = Choice(choice, delta);
    const bool is_empty = json["text"] == "" && delta.logprobs.empty();
    if (is_empty && delta.finish == FinishReason::kNone) return {};
    return {StreamEnvelope(options_.common, kObject, std::move(json))};
  }

  ResponseJson UsageChunk(const Usage& usage) const override {
    return UsageEnvelope(options_.common, kObject, usage);
  }

  ResponseJson Whole(const std::vector<GenerationOutput>& choices, const Usage& usage) override {
    ResponseJson json = Envelope(options_.common, kObject);
    ResponseJson list = ResponseJson::array();
    for (size_t i = 0; i < choices.size(); ++i) {
      list.push_back(Choice(static_cast<int>(i), choices[i]));
    }
    json["choices"] = std::move(list);
    json["usage"] = UsageJson(usage);
    return json;
  }

 private:
  static constexpr char kObject[] = "text_completion";

  ResponseJson Choice(int index, const GenerationOutput& delta) {
    auto [entry, is_first] = logprobs_.try_emplace(index, spelling_, options_.num_top_logprobs,
                                                   options_.common.skip_special_tokens);
    LegacyLogprobs& logprobs = entry->second;
    std::string text;
    if (is_first && options_.echo) {
      const EchoedPrompt& prompt = options_.prompts[index / options_.num_choices_per_prompt];
      text = prompt.text;
      if (options_.num_top_logprobs >= 0) {
        logprobs.AddPrompt(prompt.text, prompt.tokens, delta.prompt_logprobs);
      }
    }
    text += delta.text;
    logprobs.Add(delta.logprobs);

    ResponseJson choice;
    choice["index"] = index;
    choice["text"] = std::move(text);
    choice["logprobs"] = options_.num_top_logprobs >= 0 ? logprobs.Take() : ResponseJson();
    choice["finish_reason"] = FinishReasonJson(delta.finish);
    choice["stop_reason"] = StopReasonJson(delta);
    if (options_.num_prompt_logprobs >= 0) {
      choice["prompt_logprobs"] =
          PromptLogprobs(delta.prompt_logprobs, options_.num_prompt_logprobs, spelling_);
    }
    return choice;
  }

  const CompletionFormatOptions options_;
  const TokenSpelling spelling_;
  std::map<int, LegacyLogprobs> logprobs_;  // by choice; present once it has begun
};

}  // namespace

std::string Print(const ResponseJson& json) {
  return json.dump(-1, ' ', false, ResponseJson::error_handler_t::replace);
}

std::unique_ptr<ResponseFormat> MakeChatFormat(const ResponseOptions& options) {
  return std::make_unique<ChatFormat>(options);
}

std::unique_ptr<ResponseFormat> MakeCompletionFormat(CompletionFormatOptions options) {
  return std::make_unique<CompletionFormat>(std::move(options));
}

}  // namespace plumbline

#include "absl/status/status.h"
#include "coordinator/api/openai_types.h"
#include "coordinator/api/request_builder.h"
#include "kernels/check.h"
#include "tests/fuzz/targets.h"

namespace plumbline {
namespace {

const ServedModel& Model() {
  static const auto text = LoadModelText(PLUMBLINE_SOURCE_DIR "/deploy/demo_model/model");
  PL_CHECK(text.ok());
  static const ServedModel model{.name = "demo",
                                 .text = text->get(),
                                 .max_model_len = 2048,
                                 .vocab_size = (*text)->tokenizer->vocab_size()};
  return model;
}

void CheckIds(const absl::StatusOr<std::vector<int32_t>>& ids) {
  static const RequestBuilder builder(Model());
  if (ids.ok()) PL_CHECK(builder.CheckTokens(*ids, "ids").ok());
}

void Build(const RequestBuilder& builder, const CompletionFields& fields) {
  (void)builder.CheckModel(fields.model);
  (void)builder.CheckChoices(fields.n);
  (void)builder.CheckGeneration(fields.generation);
  const auto max_tokens = builder.FitMaxTokens(1000, fields.max_tokens);
  PL_CHECK(!max_tokens.ok() ||
           (*max_tokens >= 0 && *max_tokens <= builder.model().max_model_len - 1000));
}

void Encode(const RequestBuilder& builder, const ChatFields& fields) {
  CheckIds(builder.EncodeChat(
      {.messages = &fields.messages,
       .tools = fields.tools.is_null() ? nullptr : &fields.tools,
       .add_generation_prompt = fields.add_generation_prompt,
       .chat_template_kwargs = fields.arguments.is_null() ? nullptr : &fields.arguments},
      {}));
}

}  // namespace

void FuzzRequestBody(std::string_view body) {
  static const RequestBuilder builder(Model());
  if (const auto chat = ParseChatCompletionRequest(body, {}); chat.ok()) {
    Build(builder, chat->common);
    Encode(builder, chat->chat);
  }
  if (const auto completion = ParseCompletionRequest(body, {}); completion.ok()) {
    Build(builder, completion->common);
    for (const TextPrompt& prompt : completion->prompts) {
      (void)builder.CheckTokens(prompt.tokens, "prompt");
      CheckIds(builder.EncodeText(prompt.text, "prompt", {}));
      if (completion->suffix) CheckIds(builder.EncodeInfill({prompt.text, *completion->suffix}));
    }
  }
  if (const auto tokenize = ParseTokenizeRequest(body); tokenize.ok()) {
    if (!tokenize->prompt) Encode(builder, tokenize->chat);
  }
  if (const auto detokenize = ParseDetokenizeRequest(body); detokenize.ok()) {
    (void)Model().text->tokenizer->Decode(detokenize->tokens);
  }
}

}  // namespace plumbline

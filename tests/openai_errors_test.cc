// What clients of the OpenAI interface are refused, and why; requests that fail midway, and clients that leave.
#include "tests/openai_api_fixture.h"

namespace plumbline {
namespace {

TEST_F(OpenAiApiTest, BadFieldsAreNamed) {
  const std::pair<const char*, const char*> chat_cases[] = {
      {R"("temperatur": 1)", "temperatur|"},
      {R"("temperature": "hot")", "temperature|"},
      {R"("temperature": 2.5)", "temperature|"},
      {R"("temperature": -1)", "temperature|"},
      {R"("top_p": 0)", "top_p|"},
      {R"("top_p": 1.5)", "top_p|"},
      {R"("top_k": 1.5)", "top_k|"},
      {R"("top_k": 99999999999)", "top_k|"},
      {R"("min_p": 2)", "min_p|"},
      {R"("repetition_penalty": 0)", "repetition_penalty|"},
      {R"("presence_penalty": 3)", "presence_penalty|"},
      {R"("frequency_penalty": -3)", "frequency_penalty|"},
      {R"("n": 0)", "n|"},
      {R"("n": 1000)", "n|"},
      {R"("seed": 1.5)", "seed|"},
      {R"("seed": 99999999999999999999)", "seed|"},
      {R"("max_tokens": 0)", "max_tokens|"},
      {R"("max_tokens": -1)", "max_tokens|"},
      {R"("max_tokens": 1000)", "max_tokens|"},
      {R"("max_tokens": 1, "max_completion_tokens": 2)", "max_completion_tokens|"},
      {R"("stop": 3)", "stop|"},
      {R"("stop": [""])", "stop|"},
      {R"("stop": ["a", 1])", "stop|"},
      {R"("stop_token_ids": [2048])", "stop_token_ids|"},
      {R"("logit_bias": {"2048": 1})", "logit_bias|"},
      {R"("logit_bias": {"x": 1})", "logit_bias|"},
      {R"("logit_bias": {"1": 101})", "logit_bias|"},
      {R"("logit_bias": [1])", "logit_bias|"},
      {R"("logprobs": 3)", "logprobs|"},
      {R"("top_logprobs": 3)", "top_logprobs|"},
      {R"("logprobs": true, "top_logprobs": 21)", "logprobs|"},
      {R"("stream_options": {"include_usage": true})", "stream_options|"},
      {R"("stream": true, "stream_options": {"usage": true})", "stream_options.usage|"},
      {R"("stream": 1)", "stream|"},
      {R"("response_format": {"type": "json_object"})", "response_format|"},
      {R"("tool_choice": "required")", "tool_choice|"},
      {R"("functions": [])", "functions|"},
      {R"("tools": [{"type": "web_search"}])", "tools[0]|"},
      {R"("chat_template_kwargs": [])", "chat_template_kwargs|"},
      {R"("min_tokens": 5)", "min_tokens|"},
      {R"("guided_json": {})", "guided_json|"},
  };
  for (const auto& [field, expected] : chat_cases) {
    EXPECT_THAT(PostError("/v1/chat/completions", ChatWith(field)),
                ::testing::StartsWith(expected));
  }
  const std::pair<const char*, const char*> completion_cases[] = {
      {R"("best_of": 2)", "best_of|"},
      {R"("logprobs": 21)", "logprobs|"},
      {R"("logprobs": true)", "logprobs|"},
      {R"("echo": "yes")", "echo|"},
      {R"("messages": [])", "messages|"},
      {R"("prompt_logprobs": -2)", "prompt_logprobs|"},
      {R"("stream": true, "prompt_logprobs": 1)", "prompt_logprobs|"},
  };
  for (const auto& [field, expected] : completion_cases) {
    EXPECT_THAT(PostError("/v1/completions", CompletionWith(field)),
                ::testing::StartsWith(expected));
  }
  EXPECT_THAT(engine_->requests(), IsEmpty());
  // Null stands for absent, as clients send it.
  PostOk("/v1/chat/completions",
         Json::parse(ChatWith(R"("functions": null, "stop": null, "seed": null, "tools": null)")));
}

TEST_F(OpenAiApiTest, BadMessagesAndPromptsAreNamed) {
  const auto messages = [this](const std::string& list) {
    return PostError("/v1/chat/completions", R"({"model": "demo", "messages": )" + list + "}");
  };
  EXPECT_THAT(messages("[]"), HasSubstr("messages|"));
  EXPECT_THAT(messages("\"hi\""), HasSubstr("messages|"));
  EXPECT_THAT(messages("[3]"), HasSubstr("messages[0]|"));
  EXPECT_THAT(messages(R"([{"content": "x"}])"), HasSubstr("messages[0].role|"));
  EXPECT_THAT(messages(R"([{"role": "user"}])"), HasSubstr("messages[0].content|"));
  EXPECT_THAT(messages(R"([{"role": "user", "content": 1}])"), HasSubstr("messages[0].content|"));
  EXPECT_THAT(messages(R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
              HasSubstr("messages[0].content[0].type|"));
  const auto prompt = [this](const std::string& value) {
    return PostError("/v1/completions", R"({"model": "demo", "prompt": )" + value + "}");
  };
  EXPECT_THAT(prompt("\"\""), HasSubstr("prompt|"));
  EXPECT_THAT(prompt("[]"), HasSubstr("prompt|"));
  EXPECT_THAT(prompt("[[]]"), HasSubstr("prompt|"));
  EXPECT_THAT(prompt("{}"), HasSubstr("prompt|"));
  EXPECT_THAT(prompt("[1, 2048]"), HasSubstr("prompt| prompt: token id 2048"));
  EXPECT_THAT(prompt("[-1]"), HasSubstr("token id -1"));
  EXPECT_THAT(prompt("[1, \"a\"]"), HasSubstr("prompt|"));
  EXPECT_THAT(prompt("[1.5]"), HasSubstr("prompt|"));
  EXPECT_THAT(prompt(Json(std::vector<int>(201, 5)).dump()),
              HasSubstr("maximum context length is 200 tokens, the prompt has 201"));
}

TEST_F(OpenAiApiTest, BodiesThatAreNoJsonAreRefused) {
  EXPECT_THAT(PostError("/v1/chat/completions", "{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(PostError("/v1/chat/completions", ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(PostError("/v1/chat/completions", "[]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(PostError("/v1/completions", "{\"prompt\": \"\xff\"}"), HasSubstr("UTF-8"));
  EXPECT_THAT(PostError("/v1/completions", R"({"prompt": "\ud800"})"), HasSubstr("UTF-8"));
  EXPECT_THAT(PostError("/v1/completions", R"({"prompt": "a", "temperature": 1e999})"),
              HasSubstr("not valid JSON"));
  EXPECT_THAT(PostError("/v1/chat/completions", std::string(100'000, '[')),
              HasSubstr("nested deeper than 64"));
  EXPECT_THAT(PostError("/v1/chat/completions", std::string(2 << 20, ' '), 413),
              HasSubstr("larger than"));
}

TEST_F(OpenAiApiTest, DeepNestingAnywhereIsRefusedAndHarmless) {
  const auto repeat = [](const std::string& unit) {
    std::string text;
    for (int i = 0; i < 10'000; ++i) text += unit;
    return text;
  };
  const std::string object = repeat(R"({"a":)") + "1" + repeat("}");
  EXPECT_THAT(PostError("/v1/chat/completions", object), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(PostError("/v1/chat/completions", ChatWith("\"chat_template_kwargs\": " + object)),
              HasSubstr("nested deeper than 64"));
  // Text that the template wants as JSON.
  const Json call = {{"function", {{"name", "f"}, {"arguments", object}}}};
  const Json messages = {{{"role", "assistant"}, {"content", ""}, {"tool_calls", {call}}}};
  EXPECT_THAT(PostError("/v1/chat/completions", Json{{"model", kModel}, {"messages", messages}}.dump()),
              HasSubstr("deeper"));
  EXPECT_EQ(Post("/v1/chat/completions", Chat()).status, 200);
}

TEST_F(OpenAiApiTest, ATemplateThatNeverEndsIs400InBoundedTime) {
  const std::string endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
  const std::string large = "{% for a in range(99999) %}{{ 'xxxxxxxxxxxxxxxx' * 1000000 }}{% endfor %}";
  const auto expect = [this](const std::string& source, const RenderLimits& limits, const std::string& reason) {
    text_.chat_template = *ChatTemplate::Parse(source, limits);
    EXPECT_THAT(PostError("/v1/chat/completions", Chat().dump()), HasSubstr(reason));
  };
  const absl::Time begun = absl::Now();
  expect(endless, {}, "rendering takes too");  // many steps, or long where the machine is slow
  EXPECT_LT(absl::Now() - begun, absl::Seconds(30));
  expect(endless, {.max_steps = 100'000}, "too many steps");
  expect(endless, {.max_time = std::chrono::milliseconds(50)}, "too long");
  expect(large, {.max_bytes = 50'000'000}, "too much memory");
  EXPECT_EQ(Post("/v1/completions", Completion("hi")).status, 200);
}

TEST_F(OpenAiApiTest, UnknownModelsRoutesAndMethodsAreNamed) {
  const std::string missing =
      PostError("/v1/completions", R"({"model": "nope", "prompt": "x"})", 404);
  EXPECT_THAT(missing, HasSubstr("model| the model 'nope' does not exist"));
  EXPECT_EQ(Get("/v1/models/nope").status, 404);
  EXPECT_EQ(Get("/nowhere").status, 404);
  const HttpReply wrong = Get("/v1/chat/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_THAT(wrong.head, HasSubstr("Allow: POST"));
  EXPECT_EQ(Get("/v1/fine_tuning/jobs").status, 501);
  EXPECT_EQ(Post("/v1/files", Json::object()).status, 501);
}

TEST_F(OpenAiApiTest, EngineRefusalsHaveTheirStatus) {
  engine_->RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  HttpReply reply = Post("/v1/chat/completions", Chat());
  EXPECT_EQ(reply.status, 429);
  EXPECT_THAT(reply.head, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_THAT(reply.body, HasSubstr("the queue is full"));
  engine_->RefuseWith(absl::UnavailableError("draining"));
  reply = Post("/v1/chat/completions", Chat());
  EXPECT_EQ(reply.status, 503);
  EXPECT_THAT(reply.head, HasSubstr("Retry-After"));
  engine_->RefuseWith(absl::InternalError("a bug"));
  EXPECT_EQ(Post("/v1/chat/completions", Chat()).status, 500);
}

TEST_F(OpenAiApiTest, FailuresHaveAStatusBeforeTheFirstTokenAndAnEventAfter) {
  Json body = Chat();
  body["stream"] = true;
  engine_->FailAfter(0, absl::UnavailableError("no cluster will come back"));
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 503);
  engine_->FailAfter(2, absl::InternalError("rank 3 failed"));
  const std::vector<Json> chunks = PostStream("/v1/chat/completions", body);
  EXPECT_EQ(chunks.back()["error"]["message"], "rank 3 failed");
  body["n"] = 3;  // one that fails ends the others
  body["stream"] = false;
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 500);
  for (int i = 0; i < 100 && engine_->num_active() > 0; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(engine_->num_active(), 0);
}

TEST_F(OpenAiApiTest, AClientThatLeavesFreesItsSequences) {
  engine_->StallAfter(2);
  for (const bool is_stream : {false, true}) {
    const int before = engine_->num_cancelled();
    Json body = Chat();
    body["stream"] = is_stream;
    body["n"] = 2;
    RawClient client(server_->port());
    const std::string text = body.dump();
    client.Send("POST /v1/chat/completions HTTP/1.1\r\nContent-Length: " +
                std::to_string(text.size()) + "\r\n\r\n" + text);
    if (is_stream) client.ReadUntil("data: ");
    for (int i = 0; i < 200 && engine_->num_active() < 2; ++i) {
      absl::SleepFor(absl::Milliseconds(10));
    }
    EXPECT_EQ(engine_->num_active(), 2);
    client.Close();
    for (int i = 0; i < 200 && engine_->num_active() > 0; ++i) {
      absl::SleepFor(absl::Milliseconds(10));
    }
    EXPECT_EQ(engine_->num_active(), 0);
    EXPECT_EQ(engine_->num_cancelled(), before + 2);
  }
}

}  // namespace
}  // namespace plumbline

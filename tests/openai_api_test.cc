// The OpenAI interface over real sockets, with a scripted engine: what clients get, what they are
// refused, and why.
#include "tests/openai_api_fixture.h"

namespace plumbline {
namespace {

// ---- chat ----

TEST_F(OpenAiApiTest, ChatAnswersWithTheTemplatesTokens) {
  const Json json = PostOk("/v1/chat/completions", Chat());
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], kModel);
  EXPECT_THAT(json["id"].get<std::string>(), HasSubstr("chatcmpl-"));
  const Json& choice = json["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "Hello, world.");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(choice["logprobs"].is_null());
  const std::vector<int32_t> prompt =
      Encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  const GenerationRequest request = engine_->requests().at(0);
  EXPECT_EQ(request.prompt, prompt);
  EXPECT_EQ(request.max_tokens, 200 - static_cast<int64_t>(prompt.size()));
  EXPECT_EQ(json["usage"]["prompt_tokens"], prompt.size());
  EXPECT_EQ(json["usage"]["completion_tokens"], Encode("Hello, world.").size() + 1);
  EXPECT_EQ(json["usage"]["total_tokens"], prompt.size() + Encode("Hello, world.").size() + 1);
}

TEST_F(OpenAiApiTest, UsageCountsThePromptsCachedTokensOnce) {
  engine_->SetPromptCached(64);
  Json body = Chat();
  body["n"] = 3;
  const Json json = PostOk("/v1/chat/completions", body);
  EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], 64);
}

TEST_F(OpenAiApiTest, ChatPassesEveryParameter) {
  PostOk("/v1/chat/completions", Json::parse(ChatWith(R"(
      "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "seed": 11, "max_completion_tokens": 3,
      "presence_penalty": 0.25, "frequency_penalty": -0.5, "repetition_penalty": 1.25,
      "logit_bias": {"17": -100, "18": 2.5}, "stop": ["x", "yy"], "stop_token_ids": [5], "ignore_eos": true,
      "skip_special_tokens": false, "include_stop_str_in_output": true, "response_format": {"type": "text"},
      "tool_choice": "auto", "user": "me", "store": false, "metadata": {"a": "b"}, "n": 1,
      "service_tier": "auto", "parallel_tool_calls": true, "logprobs": true, "top_logprobs": 3)")));
  const GenerationRequest request = engine_->requests().at(0);
  EXPECT_EQ(request.sampling.temperature, 0.5F);
  EXPECT_EQ(request.sampling.top_p, 0.9F);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(request.sampling.min_p, 0.05F);
  EXPECT_EQ(request.sampling.seed, 11);
  EXPECT_EQ(request.sampling.presence_penalty, 0.25F);
  EXPECT_EQ(request.sampling.frequency_penalty, -0.5F);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.25F);
  EXPECT_THAT(request.sampling.logit_bias,
              ElementsAre(std::pair(17, -100.0F), std::pair(18, 2.5F)));
  EXPECT_EQ(request.max_tokens, 3);
  EXPECT_THAT(request.stop, ElementsAre("x", "yy"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(5));
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_TRUE(request.include_stop);
  EXPECT_FALSE(request.skip_special_tokens);
  EXPECT_EQ(request.num_top_logprobs, 3);
}

TEST_F(OpenAiApiTest, ChatGivesPartsToolsAndArgumentsToTheTemplate) {
  PostOk("/v1/chat/completions", Json::parse(R"({"model": "demo",
      "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "tools": [{"type": "function", "function": {"name": "f"}}],
      "chat_template_kwargs": {"enable_thinking": false}})"));
  const std::string prompt = text_.tokenizer->Decode(engine_->requests().at(0).prompt);
  EXPECT_THAT(prompt, HasSubstr(R"({"type": "function", "function": {"name": "f"}})"));
  EXPECT_THAT(prompt, HasSubstr("<think>\n\n</think>"));
  EXPECT_THAT(prompt, HasSubstr("a"));
  PostOk("/v1/chat/completions",
         Json::parse(ChatWith(R"("tools": [{"type": "function", "function": {"name": "f"}}],
                                 "tool_choice": "none", "add_generation_prompt": false)")));
  EXPECT_EQ(text_.tokenizer->Decode(engine_->requests().at(1).prompt),
            "<|im_start|>user\nhi<|im_end|>\n");
}

TEST_F(OpenAiApiTest, ChatStreamsPiecesThenReasonThenUsage) {
  Json body = Chat();
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const std::vector<Json> chunks = PostStream("/v1/chat/completions", body);
  ASSERT_GE(chunks.size(), 4);
  std::string text;
  for (const Json& chunk : chunks) {
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["id"], chunks[0]["id"]);
    if (chunk["choices"].empty()) continue;
    EXPECT_TRUE(chunk["usage"].is_null());
    const Json& delta = chunk["choices"][0]["delta"];
    if (delta.contains("content")) text += delta["content"].get<std::string>();
  }
  EXPECT_EQ(text, "Hello, world.");
  EXPECT_EQ(chunks[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(chunks[chunks.size() - 2]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(chunks.back()["choices"], Json::array());
  EXPECT_EQ(chunks.back()["usage"]["completion_tokens"], Encode("Hello, world.").size() + 1);
}

TEST_F(OpenAiApiTest, TimeoutIsADeadlineOfEveryChoice) {
  Json body = Chat();
  PostOk("/v1/chat/completions", body);
  EXPECT_EQ(engine_->requests().at(0).deadline, absl::InfiniteFuture());
  body["n"] = 2;
  body["timeout"] = 1000.5;
  const absl::Time before = absl::Now();
  PostOk("/v1/chat/completions", body);
  const absl::Time after = absl::Now();
  for (const size_t i : {1, 2}) {
    EXPECT_GE(engine_->requests().at(i).deadline, before + absl::Seconds(1000.5));
    EXPECT_LE(engine_->requests().at(i).deadline, after + absl::Seconds(1000.5));
  }
  body["timeout"] = 0;
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 400);
}

TEST_F(OpenAiApiTest, SeveralChoicesHaveSeveralSeeds) {
  Json body = Chat();
  body["n"] = 3;
  body["seed"] = 40;
  const Json json = PostOk("/v1/chat/completions", body);
  ASSERT_EQ(json["choices"].size(), 3);
  EXPECT_EQ(json["choices"][2]["index"], 2);
  const auto requests = engine_->requests();
  EXPECT_EQ(requests[0].sampling.seed, 40);
  EXPECT_EQ(requests[1].sampling.seed, 41);
  EXPECT_EQ(requests[2].sampling.seed, 42);
  EXPECT_EQ(json["usage"]["prompt_tokens"], requests[0].prompt.size());
  body.erase("seed");
  body["n"] = 1;
  const HttpReply first = Post("/v1/chat/completions", body);
  const HttpReply second = Post("/v1/chat/completions", body);
  EXPECT_NE(engine_->requests()[3].sampling.seed, engine_->requests()[4].sampling.seed);
  EXPECT_THAT(first.head, HasSubstr(absl::StrCat(
                              "X-Plumbline-Seed: ", engine_->requests()[3].sampling.seed, "\r\n")));
}

TEST_F(OpenAiApiTest, ChatLogprobsAreTheEnginesFloats) {
  Json body = Chat();
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json json = PostOk("/v1/chat/completions", body);
  const Json& content = json["choices"][0]["logprobs"]["content"];
  const std::vector<int32_t> answer = Encode("Hello, world.");
  ASSERT_EQ(content.size(), answer.size() + 1);
  const size_t prompt_size = engine_->requests()[0].prompt.size();
  std::string bytes;
  for (size_t i = 0; i < answer.size(); ++i) {
    const TokenLogprob expected = FakeEngine::LogprobOf(answer[i], prompt_size + i, 2);
    EXPECT_EQ(content[i]["logprob"].get<float>(), expected.logprob);
    EXPECT_EQ(content[i]["top_logprobs"].size(), 2);
    EXPECT_EQ(content[i]["top_logprobs"][1]["logprob"].get<float>(), expected.top_logprobs[1]);
    for (const Json& byte : content[i]["bytes"]) bytes += static_cast<char>(byte.get<int>());
  }
  EXPECT_EQ(bytes, "Hello, world.");
}

// ---- text completions ----

TEST_F(OpenAiApiTest, CompletionsTakeTextTokensAndListsOfBoth) {
  const std::vector<int32_t> ids = Encode("one two");
  Json json = PostOk("/v1/completions", Completion("one two"));
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["choices"][0]["text"], "Hello, world.");
  PostOk("/v1/completions", Completion(ids));
  json = PostOk("/v1/completions", Completion({"one two", "three"}));
  EXPECT_EQ(json["choices"].size(), 2);
  PostOk("/v1/completions", Completion(std::vector<std::vector<int32_t>>{ids, {7, 8}}));
  const auto requests = engine_->requests();
  ASSERT_EQ(requests.size(), 6);
  for (const int i : {0, 1, 2, 4}) EXPECT_EQ(requests[i].prompt, ids) << i;
  EXPECT_EQ(requests[3].prompt, Encode("three"));
  EXPECT_THAT(requests[5].prompt, ElementsAre(7, 8));
  EXPECT_EQ(requests[0].max_tokens, 16);  // OpenAI's default
}

TEST_F(OpenAiApiTest, EchoScoresThePromptForEvaluation) {
  const std::string prompt = "One two three.";
  const std::vector<int32_t> ids = Encode(prompt);
  Json body = Completion(prompt);
  body["echo"] = true;
  body["logprobs"] = 1;
  body["max_tokens"] = 1;
  body["temperature"] = 0;
  const Json json = PostOk("/v1/completions", body);
  const Json& choice = json["choices"][0];
  EXPECT_THAT(choice["text"].get<std::string>(), ::testing::StartsWith(prompt));
  const Json& logprobs = choice["logprobs"];
  ASSERT_EQ(logprobs["tokens"].size(), ids.size() + 1);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(logprobs["text_offset"][i], text.size());
    text += logprobs["tokens"][i].get<std::string>();
    if (i == 0) continue;
    EXPECT_EQ(logprobs["token_logprobs"][i].get<float>(),
              FakeEngine::LogprobOf(ids[i], i, 1).logprob);
    // lm-eval's greedy test: the chosen token is the likeliest exactly when its value equals the
    // largest.
    double largest = -1e9;
    for (const auto& item : logprobs["top_logprobs"][i].items()) {
      largest = std::max(largest, item.value().get<double>());
    }
    EXPECT_EQ(logprobs["token_logprobs"][i].get<double>() == largest, i % 2 == 0) << i;
  }
  EXPECT_EQ(text, prompt);
  EXPECT_EQ(logprobs["text_offset"].back(), prompt.size());
}

TEST_F(OpenAiApiTest, ZeroTokensScoreThePromptAlone) {
  Json body = Completion("One two three.");
  body["echo"] = true;
  body["logprobs"] = 0;
  body["max_tokens"] = 0;
  const Json json = PostOk("/v1/completions", body);
  EXPECT_EQ(json["choices"][0]["text"], "One two three.");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json["choices"][0]["logprobs"]["tokens"].size(), Encode("One two three.").size());
  EXPECT_EQ(json["usage"]["completion_tokens"], 0);
  EXPECT_THAT(PostError("/v1/completions", CompletionWith(R"("max_tokens": 0)")),
              HasSubstr("max_tokens|"));
}

TEST_F(OpenAiApiTest, PromptLogprobsNameRankAndToken) {
  Json body = Completion("One two");
  body["prompt_logprobs"] = 1;
  const Json json = PostOk("/v1/completions", body);
  const std::vector<int32_t> ids = Encode("One two");
  const Json& list = json["choices"][0]["prompt_logprobs"];
  ASSERT_EQ(list.size(), ids.size());
  EXPECT_TRUE(list[0].is_null());
  const Json& own = list[1][std::to_string(ids[1])];
  EXPECT_EQ(own["rank"], 2);
  EXPECT_EQ(own["logprob"].get<float>(), FakeEngine::LogprobOf(ids[1], 1, 1).logprob);
  EXPECT_EQ(own["decoded_token"], text_.tokenizer->TokenBytes(ids[1]));
  EXPECT_TRUE(json["choices"][0]["logprobs"].is_null());
}

TEST_F(OpenAiApiTest, TokensThatAreNoTextStayDistinct) {
  engine_->SetAnswer("\xF0\x9F\xA6\x94", kEos);  // a rare character: several tokens
  ASSERT_GT(Encode("\xF0\x9F\xA6\x94").size(), 1);
  Json body = Completion("hi");
  body["logprobs"] = 0;
  const Json json = PostOk("/v1/completions", body);
  EXPECT_EQ(json["choices"][0]["text"], "\xF0\x9F\xA6\x94");
  EXPECT_THAT(json["choices"][0]["logprobs"]["tokens"][0].get<std::string>(),
              ::testing::StartsWith("bytes:\\xf0"));
  body["return_tokens_as_token_ids"] = true;
  EXPECT_THAT(
      PostOk("/v1/completions", body)["choices"][0]["logprobs"]["tokens"][0].get<std::string>(),
      ::testing::StartsWith("token_id:"));
}

TEST_F(OpenAiApiTest, CompletionsStreamEchoFirst) {
  Json body = Completion({"One", "Two"});
  body["stream"] = true;
  body["echo"] = true;
  body["logprobs"] = 1;
  std::map<int, std::string> texts;
  std::map<int, size_t> num_tokens;
  for (const Json& chunk : PostStream("/v1/completions", body)) {
    const Json& choice = chunk["choices"][0];
    texts[choice["index"]] += choice["text"].get<std::string>();
    num_tokens[choice["index"]] += choice["logprobs"]["tokens"].size();
  }
  EXPECT_EQ(texts[0], "OneHello, world.");
  EXPECT_EQ(texts[1], "TwoHello, world.");
  EXPECT_EQ(num_tokens[0], Encode("One").size() + Encode("Hello, world.").size() + 1);
}

TEST_F(OpenAiApiTest, SuffixNeedsAVocabularyWithMarkers) {
  EXPECT_THAT(PostError("/v1/completions", CompletionWith(R"("suffix": "end")")),
              HasSubstr("suffix| suffix: the vocabulary of 'demo' has no fill-in-the-middle"));
}

// ---- bad input ----

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

// ---- the other routes ----

TEST_F(OpenAiApiTest, ModelsSayWhatTheyAre) {
  const Json json = Json::parse(Get("/v1/models").body);
  EXPECT_EQ(json["object"], "list");
  const Json& model = json["data"][0];
  EXPECT_EQ(model["id"], kModel);
  EXPECT_EQ(model["max_model_len"], 200);
  EXPECT_EQ(model["numerics"], "exact");
  EXPECT_EQ(model["fingerprint"], "f1");
  EXPECT_EQ(Json::parse(Get("/v1/models/demo").body), model);
}

TEST_F(OpenAiApiTest, TokenizeAndDetokenizeAreInverse) {
  const std::string text = "Hi there<|im_end|>";
  Json json = PostOk("/tokenize", {{"prompt", text}});
  EXPECT_EQ(json["tokens"].get<std::vector<int32_t>>(), Encode(text));
  EXPECT_EQ(json["count"], Encode(text).size());
  EXPECT_EQ(json["max_model_len"], 200);
  EXPECT_EQ(json["tokens"].back(), kEos);
  EXPECT_EQ(PostOk("/detokenize", {{"tokens", json["tokens"]}})["prompt"], text);
  json = PostOk("/tokenize", Chat());
  EXPECT_EQ(json["tokens"].get<std::vector<int32_t>>(),
            Encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"));
  EXPECT_THAT(PostError("/detokenize", R"({"tokens": [2048]})"), HasSubstr("tokens|"));
  EXPECT_THAT(PostError("/tokenize", "{}"), HasSubstr("prompt|"));
  const Json info = Json::parse(Get("/tokenizer_info").body);
  EXPECT_EQ(info["eos_token"], "<|im_end|>");
  EXPECT_TRUE(info["bos_token"].is_null());
}

}  // namespace
}  // namespace plumbline

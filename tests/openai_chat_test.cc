// Chat completions over real sockets, with a scripted engine: what clients get, at once and streamed.
#include "tests/openai_api_fixture.h"

namespace plumbline {
namespace {

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

}  // namespace
}  // namespace plumbline

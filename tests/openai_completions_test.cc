// Text completions over real sockets, with a scripted engine, and the routes beside them: models, tokenize and detokenize.
#include "tests/openai_api_fixture.h"

namespace plumbline {
namespace {

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

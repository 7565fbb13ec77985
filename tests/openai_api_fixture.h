// OpenAiApiTest: the OpenAI interface over real sockets, with a scripted engine and the demo model's text.
#pragma once

#include "coordinator/api/openai_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/text/model_text.h"
#include "tests/fake_engine.h"
#include "tests/raw_client.h"

namespace plumbline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Json = nlohmann::ordered_json;

constexpr int32_t kEos = 2043;  // <|im_end|> of the demo model
constexpr char kModel[] = "demo";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class OpenAiApiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string demo = std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/";
    text_.tokenizer = *Tokenizer::Load(demo + "model/tokenizer.json");
    text_.chat_template = *ChatTemplate::Parse(ReadFile(demo + "chat_template.jinja"));
    text_.tokens.eos_token = "<|im_end|>";
    text_.eos_ids = {kEos};
    model_ = {.name = kModel,
              .text = &text_,
              .max_model_len = 200,
              .vocab_size = 2048,
              .fingerprint = "f1",
              .created = 1234};
    engine_ = std::make_unique<FakeEngine>(*text_.tokenizer);
    engine_->SetAnswer("Hello, world.", kEos);
    Start({});
  }

  void Start(OpenAiApiOptions options) {
    server_.reset();
    options.engine = engine_.get();
    options.model = &model_;
    options.requests = &requests_;
    api_ = std::make_unique<OpenAiApi>(options);
    auto server = HttpServer::Start({.max_body_bytes = 1 << 20}, api_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  HttpReply Post(const std::string& path, const Json& body) {
    return Fetch(server_->port(), "POST", path, body.dump());
  }
  HttpReply Get(const std::string& path) { return Fetch(server_->port(), "GET", path); }

  Json PostOk(const std::string& path, const Json& body) {
    const HttpReply reply = Post(path, body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return Json::parse(reply.body, nullptr, false);
  }

  // The chunks of a stream; checks its end mark.
  std::vector<Json> PostStream(const std::string& path, const Json& body) {
    const HttpReply reply = Post(path, body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    EXPECT_THAT(reply.head, HasSubstr("text/event-stream"));
    std::vector<std::string> events;
    std::stringstream lines(reply.body);
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("data: ")) events.push_back(line.substr(6));
    }
    std::vector<Json> chunks;
    EXPECT_FALSE(events.empty());
    if (events.empty()) return chunks;
    EXPECT_EQ(events.back(), "[DONE]");
    events.pop_back();
    for (const std::string& event : events) chunks.push_back(Json::parse(event));
    return chunks;
  }

  // Expects OpenAI's error object; returns "param: message".
  std::string PostError(const std::string& path, const std::string& body, int status = 400) {
    const HttpReply reply = Fetch(server_->port(), "POST", path, body);
    EXPECT_EQ(reply.status, status) << body << "\n" << reply.body;
    const Json json = Json::parse(reply.body, nullptr, false);
    if (!json.is_object() || !json.contains("error")) return "no error object: " + reply.body;
    const Json& error = json["error"];
    EXPECT_TRUE(error.contains("type") && error.contains("code"));
    const std::string param = error["param"].is_string() ? error["param"].get<std::string>() : "";
    return param + "| " + error["message"].get<std::string>();
  }

  // A chat request with one more field.
  static std::string ChatWith(const std::string& field) {
    return R"({"model": "demo", "messages": [{"role": "user", "content": "hi"}], )" + field + "}";
  }
  static std::string CompletionWith(const std::string& field) {
    return R"({"model": "demo", "prompt": "hi", )" + field + "}";
  }

  Json Chat() { return {{"model", kModel}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}}; }
  Json Completion(const Json& prompt) { return {{"model", kModel}, {"prompt", prompt}}; }
  std::vector<int32_t> Encode(const std::string& text) { return *text_.tokenizer->Encode(text); }

  RequestTracker requests_;
  ModelText text_;
  ServedModel model_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace
}  // namespace plumbline

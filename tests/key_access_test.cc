// API keys and their quotas over HTTP, plain and over TLS: who is let in, what is refused and how, and that no key is
// ever logged.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cli/server_log.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/openai_api.h"
#include "coordinator/security/access_control.h"
#include "coordinator/security/api_key.h"
#include "coordinator/text/model_text.h"
#include "tests/fake_engine.h"
#include "tests/raw_client.h"
#include "tests/test_certificates.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::ordered_json;

constexpr char kRoute[] = "/v1/completions";
constexpr char kOperatorKey[] = "operators-secret";

// What stands in a file that was written through.
std::string TextOf(std::FILE* file) {
  std::string text;
  std::rewind(file);
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  return text;
}

// Every test, plain and over TLS.
class KeyAccessTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    text_.tokenizer = *Tokenizer::Load(std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/model/tokenizer.json");
    model_ = {.name = "demo", .text = &text_, .max_model_len = 200, .vocab_size = 2048};
    engine_ = std::make_unique<FakeEngine>(*text_.tokenizer);
    engine_->SetAnswer("Hello, world.", 2043);
    folder_ = std::filesystem::path(::testing::TempDir()) / absl::StrCat("key_access_test.", ::getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    const std::string path = (folder_ / "keys.db").string();
    keys_ = *KeyStore::Open(path, KeyStore::Mode::kCreate);
    access_ = std::make_unique<AccessControl>(AccessOptions{
        .operator_key = kOperatorKey, .key_store = *KeyStore::Open(path, KeyStore::Mode::kRead), .clock = [this] {
          return absl::FromUnixSeconds(now_seconds_);
        }});
    api_ = std::make_unique<OpenAiApi>(
        OpenAiApiOptions{.engine = engine_.get(), .model = &model_, .requests = &requests_, .access = access_.get()});
    const TestCertificates& certificates = TestCertificates::Get();
    if (GetParam()) tls_ = std::make_unique<ClientTls>(certificates.Path("ca.pem"), "", "");
    server_ = *HttpServer::Start({.tls = certificates.Identity(GetParam() ? "server" : "", "")}, api_.get());
  }
  void TearDown() override {
    server_.reset();
    std::fclose(log_file_);
    std::filesystem::remove_all(folder_);
  }

  std::string MakeKey(const QuotaLimits& limits) {
    return keys_->Create({.name = "alice", .limits = limits}, absl::Now())->key;
  }
  // Prompts of exactly so many tokens, answered by at most so many.
  static std::string Body(int64_t num_prompt, int64_t max_tokens) {
    return Json{{"prompt", std::vector<int32_t>(num_prompt, 5)}, {"max_tokens", max_tokens}, {"ignore_eos", true}}
        .dump();
  }
  HttpReply Call(const std::string& method, const std::string& path, const std::string& body = "",
                 const std::string& headers = "") {
    return Fetch(server_->port(), method, path, body, headers, tls_.get());
  }
  HttpReply Post(const std::string& key, const std::string& body) {
    return Call("POST", kRoute, body, "Authorization: Bearer " + key + "\r\n");
  }
  std::string Metrics() { return Call("GET", "/metrics").body; }
  void StartUnfinished(RawClient& client, const std::string& key, const std::string& body) {
    const int before = engine_->num_active();
    client.Send(absl::StrCat("POST ", kRoute, " HTTP/1.1\r\nAuthorization: Bearer ", key,
                             "\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
    for (int i = 0; i < 500 && engine_->num_active() == before; ++i) absl::SleepFor(absl::Milliseconds(10));
    ASSERT_EQ(engine_->num_active(), before + 1);
  }
  int StatusOnceFree(const std::string& key, const std::string& body) {
    int status = 429;
    for (int i = 0; i < 500 && status == 429; ++i) {
      status = Post(key, body).status;
      if (status == 429) absl::SleepFor(absl::Milliseconds(10));
    }
    return status;
  }

  std::atomic<int64_t> now_seconds_ = 1'700'000'000;
  std::FILE* const log_file_ = std::tmpfile();
  ServerLog log_{ServerLog::Format::kJson, log_file_};
  RequestTracker requests_{[this](const RequestRecord& record) { log_.Request(record); }};
  ModelText text_;
  ServedModel model_;
  std::filesystem::path folder_;
  std::unique_ptr<KeyStore> keys_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<ClientTls> tls_;
};

INSTANTIATE_TEST_SUITE_P(, KeyAccessTest, ::testing::Bool(), [](const auto& test) { return test.param ? "Tls" : "Plain"; });

TEST_P(KeyAccessTest, NoKeyAndWrongKeysAre401) {
  const std::string key = MakeKey({});
  EXPECT_EQ(Post(key, Body(3, 2)).status, 200);
  EXPECT_EQ(Post(kOperatorKey, Body(3, 2)).status, 200);
  const HttpReply none = Call("POST", kRoute, Body(3, 2));
  const HttpReply wrong = Post(MakeApiKey(), Body(3, 2));
  for (const HttpReply& reply : {none, wrong}) {
    EXPECT_EQ(reply.status, 401);
    EXPECT_THAT(reply.head, HasSubstr("WWW-Authenticate: Bearer\r\n"));
    const Json error = Json::parse(reply.body)["error"];
    EXPECT_EQ(error["code"], "invalid_api_key");
    EXPECT_EQ(error["type"], "authentication_error");
  }
  EXPECT_EQ(engine_->requests().size(), 2);
  for (const char* path : {"/v1/models", "/tokenizer_info", "/v1/files"}) {
    EXPECT_EQ(Call("GET", path).status, 401) << path;
  }
  for (const char* path : {"/health", "/ready", "/metrics"}) {
    EXPECT_EQ(Call("GET", path).status, 200) << path;
  }
  ASSERT_TRUE(keys_->Revoke(1, absl::Now()).ok());  // while the server runs
  EXPECT_EQ(Post(key, Body(3, 2)).status, 401);
  EXPECT_THAT(Metrics(), HasSubstr("plumbline_access_refused_total{reason=\"no_key\"} 4\n"));
  EXPECT_THAT(Metrics(), HasSubstr("plumbline_access_refused_total{reason=\"wrong_key\"} 2\n"));
}

TEST_P(KeyAccessTest, OverTheTokensPerMinuteIs429UntilTheTimeItNames) {
  const std::string key = MakeKey({.tokens_per_minute = 60});
  EXPECT_EQ(Post(key, Body(30, 20)).status, 200);  // 10 are left
  const HttpReply refused = Post(key, Body(15, 1));
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.head, HasSubstr("Retry-After: 5\r\n"));
  const Json error = Json::parse(refused.body)["error"];
  EXPECT_EQ(error["code"], "rate_limit_exceeded");
  EXPECT_EQ(error["type"], "tokens");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("60 tokens per minute"));
  EXPECT_EQ(engine_->requests().size(), 1);
  now_seconds_ += 4;
  EXPECT_EQ(Post(key, Body(15, 1)).status, 429);
  now_seconds_ += 1;
  EXPECT_EQ(Post(key, Body(15, 1)).status, 200);
  EXPECT_EQ(Post(MakeKey({.tokens_per_minute = 60}), Body(15, 1)).status, 200);
  EXPECT_EQ(Post(kOperatorKey, Body(190, 5)).status, 200);
  EXPECT_EQ(Call("GET", "/v1/models", "", "Authorization: Bearer " + key + "\r\n").status, 200);
  EXPECT_THAT(Metrics(), HasSubstr("plumbline_access_refused_total{reason=\"tokens_per_minute\"} 2\n"));
  ASSERT_TRUE(keys_->Change(1, {.tokens_per_minute = 0}).ok());  // while the server runs
  EXPECT_EQ(Post(key, Body(150, 1)).status, 200);
}

TEST_P(KeyAccessTest, RefusedRequestsCostNothing) {
  const std::string key = MakeKey({.tokens_per_minute = 60, .max_concurrent = 1});
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Post(key, Body(50, 1000)).status, 400);
    engine_->RefuseWith(absl::ResourceExhaustedError("the queue is full"));
    const HttpReply full = Post(key, Body(50, 5));
    EXPECT_EQ(full.status, 429);
    EXPECT_EQ(Json::parse(full.body)["error"]["code"], "queue_full");
    engine_->RefuseWith(absl::OkStatus());
  }
  EXPECT_EQ(Post(key, Body(50, 5)).status, 200);
}

TEST_P(KeyAccessTest, AConcurrentRequestsPlaceIsFreeWhenItsClientLeaves) {
  const std::string key = MakeKey({.max_concurrent = 1});
  engine_->StallAfter(2);
  RawClient client(server_->port(), tls_.get());
  StartUnfinished(client, key, Body(3, 50));
  const HttpReply refused = Post(key, Body(3, 1));
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.head, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_EQ(Json::parse(refused.body)["error"]["type"], "requests");
  EXPECT_EQ(Json::parse(refused.body)["error"]["code"], "rate_limit_exceeded");
  EXPECT_EQ(Post(MakeKey({.max_concurrent = 1}), Body(3, 1)).status, 200);
  client.Close();
  EXPECT_EQ(StatusOnceFree(key, Body(3, 1)), 200);
  EXPECT_THAT(Metrics(), HasSubstr("{reason=\"concurrent_requests\"}"));
}

TEST_P(KeyAccessTest, APlaceIsFreeAfterAnErrorAndAsSoonAsAnAnswerIsRead) {
  const std::string key = MakeKey({.max_concurrent = 1});
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Post(key, Body(3, 2)).status, 200);
  const std::string stream = R"({"prompt": "a", "max_tokens": 3, "stream": true})";
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Post(key, stream).status, 200);
  engine_->FailAfter(1, absl::InternalError("a bug"));
  EXPECT_EQ(Post(key, Body(3, 5)).status, 500);
  EXPECT_EQ(Post(key, Body(3, 5)).status, 500);
}

TEST_P(KeyAccessTest, TokensOfAnAbandonedRequestAreCharged) {
  const std::string key = MakeKey({.tokens_per_minute = 60});
  engine_->StallAfter(20);
  RawClient client(server_->port(), tls_.get());
  const std::string body = R"({"prompt": [5, 5, 5], "max_tokens": 100, "ignore_eos": true, "stream": true,
                               "logprobs": 0})";  // so that every token is an event
  StartUnfinished(client, key, body);
  for (int i = 0; i < 20; ++i) client.ReadUntil("data: ");
  client.Close();
  EXPECT_EQ(Post(key, Body(38, 1)).status, 429);  // 3 + 20 of 60 are gone
  EXPECT_EQ(Post(key, Body(37, 1)).status, 200);
}

TEST_P(KeyAccessTest, KeysAreNeverLogged) {
  const std::string key = MakeKey({.tokens_per_minute = 5});
  const std::string wrong = MakeApiKey();
  EXPECT_EQ(Post(key, Body(5, 5)).status, 200);
  EXPECT_EQ(Post(key, Body(5, 5)).status, 429);
  EXPECT_EQ(Post(key, "{").status, 429);
  EXPECT_EQ(Post(wrong, Body(5, 5)).status, 401);
  EXPECT_EQ(Post(kOperatorKey, "{").status, 400);
  server_->Stop(absl::Now() + absl::Seconds(1));
  spdlog::error("the end");
  const std::string log = TextOf(log_file_);
  EXPECT_THAT(log, HasSubstr("\"status\":401"));  // or nothing was captured
  EXPECT_THAT(log, HasSubstr("\"key\":\"alice\""));
  EXPECT_THAT(log, HasSubstr("the end"));
  for (const std::string& secret : {key, wrong}) {
    EXPECT_THAT(log, Not(HasSubstr(secret.substr(3, 16))));
    EXPECT_THAT(log, Not(HasSubstr(std::string(absl::BytesToHexString(HashApiKey(secret))))));
  }
  EXPECT_THAT(log, HasSubstr("\"key\":\"operator\""));
  EXPECT_THAT(log, Not(HasSubstr(kOperatorKey)));
}

}  // namespace
}  // namespace plumbline

// The gRPC services over real sockets, with a scripted engine.
#include "coordinator/api/grpc_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/security/access_control.h"
#include "coordinator/text/model_text.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/grpc_credentials.h"
#include "proto/inference.grpc.pb.h"
#include "proto/training.grpc.pb.h"
#include "tests/fake_engine.h"
#include "tests/test_certificates.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kEos = 2043;  // <|im_end|> of the demo model

class FakeCluster final : public ClusterInfo {
 public:
  ClusterSnapshot Snapshot() const override {
    return {.epoch = 7,
            .tp = 2,
            .pp = 1,
            .arithmetic = "cpu-test-1",
            .ready = true,
            .ranks = {{.rank = 0, .last_layer = 4, .host = "a", .pid = 12, .state = "ready"},
                      {.rank = 1, .tp_index = 1, .last_layer = 4, .host = "b", .state = "lost"}}};
  }
};

class GrpcServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string demo = std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/";
    text_.tokenizer = *Tokenizer::Load(demo + "model/tokenizer.json");
    text_.chat_template = *ChatTemplate::Parse(
        "{% for message in messages %}{{ message.role + ':' + message.content }}{% endfor %}");
    model_ = {.name = "demo",
              .text = &text_,
              .max_model_len = 200,
              .vocab_size = 2048,
              .fingerprint = "f1"};
    engine_ = std::make_unique<FakeEngine>(*text_.tokenizer);
    engine_->SetAnswer("Hello, world.", kEos);
    Start({});
  }

  void Start(GrpcServerOptions options) {
    server_.reset();
    options.engine = engine_.get();
    options.model = &model_;
    options.requests = &requests_;
    options.cluster = &cluster_;
    auto server = GrpcServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
    inference_ = v1::Inference::NewStub(channel_);
  }

  struct Answer {
    grpc::Status status;
    std::map<int, std::string> texts;
    std::map<int, std::string> reasons;
    std::vector<v1::TokenInfo> logprobs;
    v1::Usage usage;
  };
  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext& context) {
    Answer answer;
    const auto stream = inference_->Generate(&context, request);
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
      answer.texts[response.choice()] += response.text();
      answer.reasons[response.choice()] += response.finish_reason();
      for (const v1::TokenInfo& info : response.logprobs()) answer.logprobs.push_back(info);
      if (response.has_usage()) answer.usage = response.usage();
    }
    answer.status = stream->Finish();
    return answer;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, context);
  }
  static v1::GenerateRequest TextRequest() {
    v1::GenerateRequest request;
    request.set_text("hi");
    request.set_max_tokens(20);
    return request;
  }
  bool WaitUntilIdle() {
    for (int i = 0; i < 300 && engine_->num_active() > 0; ++i) {
      absl::SleepFor(absl::Milliseconds(10));
    }
    return engine_->num_active() == 0;
  }

  RequestTracker requests_;
  ModelText text_;
  ServedModel model_;
  FakeCluster cluster_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
};

TEST_F(GrpcServiceTest, GeneratesEveryChoiceWithItsReasonAndUsage) {
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  request.set_logprobs(2);
  request.mutable_sampling()->set_seed(9);
  request.mutable_sampling()->set_temperature(0.5);
  (*request.mutable_sampling()->mutable_logit_bias())[3] = 1.5;
  engine_->SetPromptCached(64);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.texts.at(0), "Hello, world.");
  EXPECT_EQ(answer.texts.at(1), "Hello, world.");
  EXPECT_EQ(answer.reasons.at(1), "stop");
  const auto num_tokens = static_cast<int>(text_.tokenizer->Encode("Hello, world.")->size()) + 1;
  EXPECT_EQ(answer.usage.prompt_tokens(), text_.tokenizer->Encode("hi")->size());
  EXPECT_EQ(answer.usage.completion_tokens(), 2 * num_tokens);
  EXPECT_EQ(answer.usage.cached_tokens(), 64);
  EXPECT_EQ(answer.logprobs.size(), 2 * num_tokens);
  EXPECT_EQ(answer.logprobs[0].top_ids_size(), 2);
  const auto requests = engine_->requests();
  EXPECT_EQ(requests[1].sampling.seed, 10);
  EXPECT_EQ(requests[0].sampling.temperature, 0.5F);
  EXPECT_EQ(requests[0].sampling.logit_bias[0].second, 1.5F);
}

TEST_F(GrpcServiceTest, TakesTokensAndConversations) {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(5);
  EXPECT_TRUE(Generate(request).status.ok());
  EXPECT_EQ(engine_->requests()[0].max_tokens, 199);  // what the context leaves
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  EXPECT_TRUE(Generate(request).status.ok());
  EXPECT_EQ(engine_->requests()[1].prompt, *text_.tokenizer->Encode("user:hi"));
}

TEST_F(GrpcServiceTest, StatusCodesMeanWhatTheySay) {
  v1::GenerateRequest request = TextRequest();
  request.set_model("nope");
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::NOT_FOUND);
  request = TextRequest();
  request.mutable_sampling()->set_top_p(3);
  grpc::Status status = Generate(request).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("top_p"));
  request = v1::GenerateRequest();
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.mutable_tokens()->add_ids(5000);
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.mutable_chat()->set_tools_json("{");
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  engine_->FailAfter(2, absl::InternalError("rank 3 failed"));
  status = Generate(TextRequest()).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "rank 3 failed");
  engine_->RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  EXPECT_EQ(Generate(TextRequest()).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcServiceTest, CancellationAndDeadlinesEndTheSequences) {
  engine_->StallAfter(1);
  {
    grpc::ClientContext context;
    v1::GenerateRequest request = TextRequest();
    request.set_n(2);
    const auto stream = inference_->Generate(&context, request);
    v1::GenerateResponse response;
    EXPECT_TRUE(stream->Read(&response));
    EXPECT_EQ(engine_->num_active(), 2);
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(WaitUntilIdle());
  }
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  EXPECT_EQ(Generate(TextRequest(), context).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GrpcServiceTest, ScoresTokenizesAndNamesModels) {
  const std::vector<int32_t> ids = *text_.tokenizer->Encode("One two three.");
  {
    grpc::ClientContext context;
    v1::ScoreRequest request;
    v1::ScoreResponse response;
    request.set_text("One two three.");
    request.set_top_logprobs(1);
    ASSERT_TRUE(inference_->Score(&context, request, &response).ok());
    EXPECT_EQ(std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end()), ids);
    ASSERT_EQ(response.tokens_size(), static_cast<int>(ids.size()) - 1);
    EXPECT_EQ(response.tokens(0).logprob(), FakeEngine::LogprobOf(ids[1], 1, 1).logprob);
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    v1::TokenizeResponse response;
    request.set_text("One two three.");
    ASSERT_TRUE(inference_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(std::vector<int32_t>(response.ids().begin(), response.ids().end()), ids);
    grpc::ClientContext back;
    v1::DetokenizeRequest tokens;
    v1::DetokenizeResponse text;
    *tokens.mutable_ids() = response.ids();
    ASSERT_TRUE(inference_->Detokenize(&back, tokens, &text).ok());
    EXPECT_EQ(text.text(), "One two three.");
  }
  grpc::ClientContext context;
  v1::ModelsResponse models;
  ASSERT_TRUE(inference_->Models(&context, {}, &models).ok());
  EXPECT_EQ(models.models(0).id(), "demo");
  EXPECT_EQ(models.models(0).arithmetic(), "cpu-test-1");
  EXPECT_EQ(models.models(0).numerics(), "exact");
}

TEST_F(GrpcServiceTest, ClusterShowsItsRanksAndDrains) {
  const auto cluster = v1::Cluster::NewStub(channel_);
  {
    grpc::ClientContext context;
    v1::StatusResponse status;
    ASSERT_TRUE(cluster->Status(&context, {}, &status).ok());
    EXPECT_EQ(status.epoch(), 7);
    EXPECT_EQ(status.tp(), 2);
    EXPECT_TRUE(status.ready());
    ASSERT_EQ(status.ranks_size(), 2);
    EXPECT_EQ(status.ranks(1).state(), "lost");
  }
  grpc::ClientContext context;
  v1::DrainResponse drained;
  EXPECT_TRUE(cluster->Drain(&context, {}, &drained).ok());
  EXPECT_EQ(Generate(TextRequest()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServiceTest, RequestIdsComeBackWithTheTrailers) {
  const auto id_of = [](const grpc::ClientContext& context) {
    const auto& trailer = context.GetServerTrailingMetadata();
    const auto found = trailer.find("x-request-id");
    return found == trailer.end() ? "" : std::string(found->second.data(), found->second.size());
  };
  grpc::ClientContext streamed;
  streamed.AddMetadata("x-request-id", "mine-1");
  EXPECT_TRUE(Generate(TextRequest(), streamed).status.ok());
  EXPECT_EQ(id_of(streamed), "mine-1");
  grpc::ClientContext unary;
  unary.AddMetadata("x-request-id", "not one word");
  v1::ModelsResponse models;
  EXPECT_TRUE(inference_->Models(&unary, {}, &models).ok());
  EXPECT_THAT(id_of(unary), ::testing::StartsWith("req-"));
  grpc::ClientContext refused;
  refused.AddMetadata("x-request-id", "mine-2");
  EXPECT_FALSE(Generate({}, refused).status.ok());
  EXPECT_EQ(id_of(refused), "mine-2");
  const std::string metrics = requests_.metrics().Serialize({});
  EXPECT_THAT(metrics, HasSubstr("plumbline_grpc_requests_total{code=\"0\",method=\"Inference.Generate\"} 1"));
  EXPECT_THAT(metrics, HasSubstr("plumbline_grpc_requests_total{code=\"3\",method=\"Inference.Generate\"} 1"));
  EXPECT_THAT(metrics, HasSubstr("plumbline_time_to_first_token_seconds_count 1"));
}

TEST_F(GrpcServiceTest, TrainingSaysThatItIsNotSupported) {
  const auto training = v1::Training::NewStub(channel_);
  grpc::ClientContext context;
  v1::Job job;
  const grpc::Status status = training->CreateJob(&context, {}, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("fine-tune"));
}

TEST_F(GrpcServiceTest, AKeyIsAskedFor) {
  AccessControl access({.operator_key = "secret"});
  Start({.access = &access});
  EXPECT_EQ(Generate(TextRequest()).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer secret");
  EXPECT_TRUE(Generate(TextRequest(), context).status.ok());
  server_.reset();
}

TEST_F(GrpcServiceTest, OverTlsClientsNeedWhatTheServerAsksFor) {
  const TestCertificates& certificates = TestCertificates::Get();
  AccessControl access({.operator_key = "secret"});
  const auto code = [&](const TlsIdentity& client, const std::string& key) {
    grpc::ChannelArguments own_connection;
    own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    inference_ = v1::Inference::NewStub(grpc::CreateCustomChannel(
        absl::StrCat("127.0.0.1:", server_->port()), ChannelCredentialsOf(client), own_connection));
    grpc::ClientContext context;
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    return Generate(TextRequest(), context).status.error_code();
  };
  Start({.tls = certificates.Identity("server", "ca"), .access = &access});
  EXPECT_EQ(code(certificates.Identity("client", "ca"), "secret"), grpc::StatusCode::OK);
  EXPECT_EQ(code(certificates.Identity("client", "ca"), ""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(code(certificates.Identity("client", "ca"), "wrong"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(code({}, "secret"), grpc::StatusCode::UNAVAILABLE);  // plain
  EXPECT_EQ(code(certificates.Identity("client", "other_ca"), "secret"), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(code(certificates.Identity("stranger", "ca"), "secret"), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(code(certificates.Identity("client", "ca"), "secret"), grpc::StatusCode::OK);

  Start({.tls = certificates.Identity("server", ""), .access = &access});  // clients need none
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer secret");
  inference_ = v1::Inference::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), 
      grpc::SslCredentials({.pem_root_certs = certificates.Read("ca.pem")})));
  EXPECT_EQ(Generate(TextRequest(), context).status.error_code(), grpc::StatusCode::OK);
  server_.reset();
}

TEST_F(GrpcServiceTest, AMessageBeyondTheLimitIsRefused) {
  Start({.max_message_bytes = 1 << 20});
  v1::GenerateRequest request = TextRequest();
  request.set_text(std::string(2 << 20, 'x'));
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(TextRequest()).status.ok());
}

class GrpcKeysTest : public GrpcServiceTest {
 protected:
  void SetUp() override {
    GrpcServiceTest::SetUp();
    folder_ = std::filesystem::path(::testing::TempDir()) / absl::StrCat("grpc_keys_test.", ::getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    const std::string path = (folder_ / "keys.db").string();
    keys_ = *KeyStore::Open(path, KeyStore::Mode::kCreate);
    access_ = std::make_unique<AccessControl>(
        AccessOptions{.operator_key = "operator",
                      .key_store = *KeyStore::Open(path, KeyStore::Mode::kRead),
                      .clock = [] { return absl::FromUnixSeconds(1'700'000'000); }});
    Start({.access = access_.get()});
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string MakeKey(const QuotaLimits& limits) {
    return keys_->Create({.name = "alice", .limits = limits}, absl::Now())->key;
  }
  static void SetKey(grpc::ClientContext& context, const std::string& key) {
    context.AddMetadata("authorization", "Bearer " + key);
  }
  static v1::GenerateRequest TokensRequest(int num_tokens) {
    v1::GenerateRequest request;
    for (int i = 0; i < num_tokens; ++i) request.mutable_tokens()->add_ids(5);
    request.set_max_tokens(1);
    return request;
  }
  // "0", or the refusal's retry-after.
  std::string RetryAfter(const std::string& key, const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    SetKey(context, key);
    const grpc::Status status = Generate(request, context).status;
    if (status.ok()) return "0";
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    const auto& trailer = context.GetServerTrailingMetadata();
    const auto found = trailer.find("retry-after");
    return found == trailer.end() ? "none" : std::string(found->second.data(), found->second.size());
  }
  std::string ScoreRetryAfter(const std::string& key, int num_tokens) {
    grpc::ClientContext context;
    SetKey(context, key);
    v1::ScoreRequest request;
    v1::ScoreResponse response;
    for (int i = 0; i < num_tokens; ++i) request.mutable_tokens()->add_ids(5);
    const grpc::Status status = inference_->Score(&context, request, &response);
    if (status.ok()) return "0";
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    const auto& trailer = context.GetServerTrailingMetadata();
    const auto found = trailer.find("retry-after");
    return found == trailer.end() ? "none" : std::string(found->second.data(), found->second.size());
  }

  std::filesystem::path folder_;
  std::unique_ptr<KeyStore> keys_;
  std::unique_ptr<AccessControl> access_;
};

TEST_F(GrpcKeysTest, WrongAndRevokedKeysAreUnauthenticated) {
  const std::string key = MakeKey({});
  EXPECT_EQ(RetryAfter(key, TokensRequest(3)), "0");
  EXPECT_EQ(Generate(TextRequest()).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  ASSERT_TRUE(keys_->Revoke(1, absl::Now()).ok());
  grpc::ClientContext context;
  SetKey(context, key);
  EXPECT_EQ(Generate(TextRequest(), context).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(GrpcKeysTest, OverTheTokensPerMinuteSaysWhenToTryAgain) {
  const std::string key = MakeKey({.tokens_per_minute = 60});
  EXPECT_EQ(RetryAfter(key, TokensRequest(40)), "0");  // and one generated: 19 are left
  EXPECT_EQ(RetryAfter(key, TokensRequest(30)), "11");
  EXPECT_EQ(ScoreRetryAfter(key, 30), "11");
  EXPECT_EQ(ScoreRetryAfter(key, 19), "0");
  EXPECT_EQ(ScoreRetryAfter(key, 1), "1");
  EXPECT_EQ(RetryAfter("operator", TokensRequest(150)), "0");
}

TEST_F(GrpcKeysTest, RefusedRequestsCostNothing) {
  const std::string key = MakeKey({.tokens_per_minute = 60, .max_concurrent = 1});
  engine_->RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(RetryAfter(key, TokensRequest(50)), "none");
    EXPECT_EQ(ScoreRetryAfter(key, 50), "none");
  }
  engine_->RefuseWith(absl::OkStatus());
  EXPECT_EQ(ScoreRetryAfter(key, 60), "0");
}

TEST_F(GrpcKeysTest, AConcurrentRequestsPlaceIsFreeWhenItsClientLeaves) {
  const std::string key = MakeKey({.max_concurrent = 1});
  for (int i = 0; i < 50; ++i) EXPECT_EQ(RetryAfter(key, TokensRequest(3)), "0");
  for (int i = 0; i < 50; ++i) EXPECT_EQ(ScoreRetryAfter(key, 3), "0");
  engine_->StallAfter(1);
  {
    grpc::ClientContext context;
    SetKey(context, key);
    const auto stream = inference_->Generate(&context, [] {
      v1::GenerateRequest request = TokensRequest(3);
      request.set_max_tokens(50);
      return request;
    }());
    v1::GenerateResponse response;
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(RetryAfter(key, TokensRequest(3)), "1");
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  std::string retry_after = "1";
  for (int i = 0; i < 500 && retry_after == "1"; ++i) {
    retry_after = RetryAfter(key, TokensRequest(3));
    if (retry_after == "1") absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(retry_after, "0");
}

// One client must not end the service of all others.
TEST_F(GrpcKeysTest, DrainingNeedsTheOperatorsKey) {
  const auto cluster = v1::Cluster::NewStub(channel_);
  const auto drain = [&](const std::string& key) {
    grpc::ClientContext context;
    if (!key.empty()) SetKey(context, key);
    v1::DrainResponse response;
    return cluster->Drain(&context, {}, &response).error_code();
  };
  const std::string key = MakeKey({});
  EXPECT_EQ(drain(""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(drain(key), grpc::StatusCode::PERMISSION_DENIED);
  grpc::ClientContext context;
  SetKey(context, key);
  v1::StatusResponse status;
  EXPECT_TRUE(cluster->Status(&context, {}, &status).ok());
  EXPECT_FALSE(status.draining());
  EXPECT_EQ(drain("operator"), grpc::StatusCode::OK);
}

TEST_F(GrpcServiceTest, StopsWhileARequestIsUnderWay) {
  engine_->StallAfter(1);
  std::thread client(
      [this] { EXPECT_NE(Generate(TextRequest()).status.error_code(), grpc::StatusCode::OK); });
  while (engine_->num_active() == 0) absl::SleepFor(absl::Milliseconds(5));
  server_->Stop(absl::Now() + absl::Milliseconds(100));
  client.join();
  EXPECT_TRUE(WaitUntilIdle());
}

TEST_F(GrpcServiceTest, NamesAnAddressThatIsTaken) {
  GrpcServerOptions options;
  options.address = absl::StrCat("127.0.0.1:", server_->port());
  options.engine = engine_.get();
  options.model = &model_;
  options.requests = &requests_;
  const auto second = GrpcServer::Start(options);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.address));
}

}  // namespace
}  // namespace plumbline

// What the HTTP interface offers to those who run it: readiness, metrics, the status page, and who may see them.
#include "tests/openai_api_fixture.h"

namespace plumbline {
namespace {

TEST_F(OpenAiApiTest, ReadinessIsProgress) {
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/ready").status, 200);
  engine_->SetStats({.ready = true, .since_progress = absl::Minutes(5)});
  EXPECT_EQ(Get("/ready").status, 200) << "a long prompt";
  engine_->SetStats({.ready = false});
  EXPECT_EQ(Get("/ready").status, 503);
  engine_->SetStats({.ready = true, .draining = true});
  EXPECT_EQ(Get("/ready").status, 503);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(OpenAiApiTest, MetricsCountRequestsAndTime) {
  PostOk("/v1/chat/completions", Chat());
  PostError("/v1/completions", "{}");
  engine_->SetStats({.queued = 3,
                      .prefix_query_tokens = 900,
                      .prefix_hit_tokens = 640,
                      .generated_tokens = 77,
                      .ready = true});
  const std::string text = Get("/metrics").body;
  EXPECT_THAT(text, HasSubstr("plumbline_http_requests_total{route=\"/v1/chat/completions\","
                              "status=\"200\"} 1"));
  EXPECT_THAT(text, HasSubstr("{route=\"/v1/completions\",status=\"400\"} 1"));
  EXPECT_THAT(text, HasSubstr("plumbline_time_to_first_token_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("plumbline_queued_sequences 3"));
  EXPECT_THAT(text, HasSubstr("plumbline_generated_tokens_total 77"));
  EXPECT_THAT(text, HasSubstr("plumbline_prefix_cache_query_tokens_total 900"));
  EXPECT_THAT(text, HasSubstr("plumbline_prefix_cache_hit_tokens_total 640"));
}

TEST_F(OpenAiApiTest, ThePageIsOpenAndLoadsNothingFromElsewhere) {
  AccessControl access({.operator_key = "secret"});
  Start({.access = &access});
  for (const auto& [path, type] : {std::pair("/", "text/html"), std::pair("/web/page.js", "text/javascript"),
                                   std::pair("/web/page.css", "text/css"), std::pair("/web/icon.svg", "image/svg+xml")}) {
    const HttpReply reply = Get(path);
    EXPECT_EQ(reply.status, 200) << path;
    EXPECT_THAT(reply.head, HasSubstr(absl::StrCat("Content-Type: ", type))) << path;
    EXPECT_THAT(reply.head, HasSubstr("X-Content-Type-Options: nosniff\r\n")) << path;
    EXPECT_THAT(reply.head, HasSubstr("Content-Security-Policy: default-src 'none'; script-src 'self'; ")) << path;
    EXPECT_THAT(reply.head, Not(HasSubstr("unsafe"))) << path;
    EXPECT_THAT(reply.body, Not(HasSubstr("https://"))) << path;
    EXPECT_THAT(reply.body, Not(HasSubstr("innerHTML"))) << path;
  }
  EXPECT_EQ(Get("/web/").status, 404);
  EXPECT_EQ(Get("/web/../openai_api.cc").status, 404);
  EXPECT_EQ(Get("/nothing").status, 404);
  server_.reset();
}

TEST_F(OpenAiApiTest, StatusNeedsAKeyWhereOthersDo) {
  EXPECT_EQ(Json::parse(Get("/status").body)["model"]["name"], "demo");
  EXPECT_EQ(Get("/status?until=1").status, 400);
  AccessControl access({.operator_key = "secret"});
  Start({.access = &access});
  EXPECT_EQ(Get("/status").status, 401);
  EXPECT_EQ(Fetch(server_->port(), "GET", "/status", "", "Authorization: Bearer secret\r\n").status, 200);
  server_.reset();
}

TEST_F(OpenAiApiTest, AStreamThatFailsMidwayIsCountedAsFailed) {
  engine_->FailAfter(2, absl::UnavailableError("gone"));
  const HttpReply reply = Post("/v1/completions", Json{{"prompt", "hi"}, {"stream", true}});
  EXPECT_EQ(reply.status, 200);
  EXPECT_THAT(Get("/metrics").body, HasSubstr("{route=\"/v1/completions\",status=\"503\"} 1"));
}

TEST_F(OpenAiApiTest, HealthAndMetricsNameWhoWasAtFault) {
  struct FaultyCluster final : ClusterInfo {
    ClusterSnapshot Snapshot() const override { return snapshot; }
    ClusterSnapshot snapshot;
  } cluster;
  Start({.cluster = &cluster});
  EXPECT_EQ(Json::parse(Get("/health").body), Json({{"status", "ok"}, {"faults", 0}}));
  EXPECT_THAT(Get("/metrics").body, HasSubstr("plumbline_faults_total 0"));
  EXPECT_THAT(Get("/metrics").body, Not(HasSubstr("plumbline_last_fault")));
  cluster.snapshot.num_faults = 3;
  cluster.snapshot.last_fault = {
      .culprits = {{.rank = 1, .host = "left", .pid = 77, .operation = "computing in step 5 after collective 9"}},
      .reason = "it stood still",
      .at = absl::FromUnixSeconds(1700000000)};
  const Json fault = Json::parse(Get("/health").body)["last_fault"];
  EXPECT_EQ(fault["time_ms"], 1700000000000);
  EXPECT_EQ(fault["reason"], "it stood still");
  EXPECT_EQ(fault["culprits"], Json::parse(R"([{"rank": 1, "host": "left", "pid": 77,
                                                "operation": "computing in step 5 after collective 9"}])"));
  const std::string metrics = Get("/metrics").body;
  EXPECT_THAT(metrics, HasSubstr("plumbline_faults_total 3"));
  EXPECT_THAT(metrics, HasSubstr("plumbline_last_fault_timestamp_seconds{rank=\"1\",host=\"left\",pid=\"77\","
                                 "operation=\"computing in step 5 after collective 9\"} 1700000000"));
  server_.reset();
}

TEST_F(OpenAiApiTest, AKeyIsAskedForWhereItMatters) {
  AccessControl access({.operator_key = "secret"});
  Start({.access = &access});
  const uint16_t port = server_->port();
  EXPECT_EQ(Fetch(port, "GET", "/v1/models").status, 401);
  EXPECT_EQ(Fetch(port, "GET", "/v1/models", "", "Authorization: Bearer wrong!\r\n").status, 401);
  EXPECT_EQ(Fetch(port, "GET", "/v1/models", "", "Authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(Fetch(port, "GET", "/health").status, 200);
  EXPECT_EQ(Fetch(port, "GET", "/ready").status, 200);
  EXPECT_EQ(Fetch(port, "GET", "/metrics").status, 200);
  EXPECT_THAT(Fetch(port, "GET", "/health", "", "X-Request-Id: abc\r\n").head,
              HasSubstr("X-Request-Id: abc\r\n"));
  server_.reset();
}

}  // namespace
}  // namespace plumbline

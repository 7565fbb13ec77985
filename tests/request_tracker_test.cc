// What is kept of requests: ids, live ones, latencies, and one record of each at its end.
#include "coordinator/api/request_tracker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class RequestTrackerTest : public ::testing::Test {
 protected:
  std::shared_ptr<RequestTrace> Begin(std::string_view id, RequestProtocol protocol = RequestProtocol::kHttp) {
    return tracker_.Begin({.protocol = protocol, .endpoint = "/v1/completions", .offered_id = id});
  }

  std::vector<RequestRecord> finished_;
  RequestTracker tracker_{[this](const RequestRecord& record) { finished_.push_back(record); }};
};

TEST_F(RequestTrackerTest, IdsAreTakenOverWhenWellFormed) {
  EXPECT_EQ(Begin("job-7/a:b")->id(), "job-7/a:b");
  EXPECT_EQ(Begin(std::string(128, 'x'))->id(), std::string(128, 'x'));
  for (const std::string& bad : {std::string(), std::string(129, 'x'), std::string("a b"), std::string("a\r\nSet-Cookie: x"),
                                 std::string("\xc3\xa4"), std::string("a\0b", 3)}) {
    const std::string made = Begin(bad)->id();
    EXPECT_THAT(made, StartsWith("req-"));
    EXPECT_EQ(made.size(), 36u);
    EXPECT_NE(made, Begin(bad)->id());
  }
}

TEST_F(RequestTrackerTest, TheEndIsToldOnceWithWhatWasCounted) {
  const absl::Time before = absl::Now();
  {
    const auto trace = Begin("a");
    trace->SetCaller({.key_id = 3, .name = "alice"});
    trace->BeginGeneration({.model = "demo", .prompt_tokens = 100, .num_choices = 2});
    trace->AddTokens(0, 1, before + absl::Seconds(10));
    trace->AddTokens(1, 2, before + absl::Seconds(11));
    trace->AddTokens(0, 4, before + absl::Seconds(12));
    trace->AddCached(64);
    trace->End(200);
    trace->End(500);
    trace->AddTokens(0, 1, before + absl::Seconds(13));
  }
  ASSERT_EQ(finished_.size(), 1u);
  const RequestRecord& record = finished_[0];
  EXPECT_EQ(record.id, "a");
  EXPECT_EQ(record.key_id, 3);
  EXPECT_EQ(record.key, "alice");
  EXPECT_EQ(record.model, "demo");
  EXPECT_EQ(record.status, 200);
  EXPECT_EQ(record.prompt_tokens, 100);
  EXPECT_EQ(record.cached_tokens, 64);
  EXPECT_EQ(record.generated_tokens, 7);
  ASSERT_TRUE(record.to_first_token.has_value());
  EXPECT_GT(*record.to_first_token, absl::Seconds(9));
  EXPECT_LE(*record.to_first_token, absl::Seconds(10));
  EXPECT_LT(record.age, absl::Seconds(9));
}

TEST_F(RequestTrackerTest, OneThatIsNeverAnsweredEndsAsCancelled) {
  Begin("a").reset();
  Begin("b", RequestProtocol::kGrpc).reset();
  ASSERT_EQ(finished_.size(), 2u);
  EXPECT_EQ(finished_[0].status, 499);
  EXPECT_EQ(finished_[1].status, 1);  // CANCELLED, as gRPC numbers it
}

TEST_F(RequestTrackerTest, ListsThoseThatGenerateInOrderOfArrival) {
  const auto other = Begin("models");
  const auto first = Begin("first"), second = Begin("second");
  first->BeginGeneration({.prompt_tokens = 5});
  second->BeginGeneration({.prompt_tokens = 6});
  second->AddTokens(0, 3, absl::Now());
  std::vector<RequestRecord> live = tracker_.Live();
  ASSERT_EQ(live.size(), 2u);
  EXPECT_EQ(live[0].id, "first");
  EXPECT_FALSE(live[0].to_first_token.has_value());
  EXPECT_EQ(live[1].id, "second");
  EXPECT_EQ(live[1].generated_tokens, 3);
  first->End(200);
  live = tracker_.Live();
  ASSERT_EQ(live.size(), 1u);
  EXPECT_EQ(live[0].id, "second");
}

TEST_F(RequestTrackerTest, TheWindowHoldsWhatCameSinceItWasLastTaken) {
  const auto trace = Begin("a");
  trace->BeginGeneration({.num_choices = 1});
  const absl::Time start = absl::Now();
  trace->AddTokens(0, 1, start);
  trace->AddTokens(0, 2, start + absl::Milliseconds(20));  // 10 ms each
  trace->AddTokens(0, 1, start + absl::Milliseconds(60));  // 40 ms
  const LatencyWindow window = tracker_.TakeWindow();
  EXPECT_EQ(window.first_token.count, 1);
  EXPECT_EQ(window.per_token.count, 3);
  EXPECT_EQ(window.per_token.sum, absl::Milliseconds(60));
  EXPECT_EQ(window.per_token.max, absl::Milliseconds(40));
  EXPECT_EQ(tracker_.TakeWindow().per_token.count, 0);
}

TEST_F(RequestTrackerTest, MetricsCountCallsAndStepsAndRanks) {
  class OneRank final : public ClusterInfo {
    ClusterSnapshot Snapshot() const override {
      return {.ranks = {{.rank = 3, .state = "ready", .steps = 41, .rss_bytes = 1000, .planned_bytes = 900}}};
    }
  } cluster;
  Begin("a", RequestProtocol::kGrpc)->End(5);
  EngineStats stats;
  stats.step_times[1].Observe(absl::Milliseconds(3));
  stats.step_times[1].Observe(absl::Seconds(100));
  const std::string text = tracker_.metrics().Serialize({.engine = stats, .cluster = &cluster});
  EXPECT_THAT(text, HasSubstr("plumbline_grpc_requests_total{code=\"5\",method=\"/v1/completions\"} 1"));
  EXPECT_THAT(text, HasSubstr("plumbline_step_seconds_bucket{phase=\"decode\",le=\"0.002\"} 0"));
  EXPECT_THAT(text, HasSubstr("plumbline_step_seconds_bucket{phase=\"decode\",le=\"0.005\"} 1"));
  EXPECT_THAT(text, HasSubstr("plumbline_step_seconds_bucket{phase=\"decode\",le=\"20\"} 1"));
  EXPECT_THAT(text, HasSubstr("plumbline_step_seconds_bucket{phase=\"decode\",le=\"+Inf\"} 2"));
  EXPECT_THAT(text, HasSubstr("plumbline_step_seconds_count{phase=\"prefill\"} 0"));
  EXPECT_THAT(text, HasSubstr("plumbline_rank_ready{rank=\"3\"} 1"));
  EXPECT_THAT(text, HasSubstr("plumbline_rank_steps_total{rank=\"3\"} 41"));
  EXPECT_THAT(text, HasSubstr("plumbline_rank_memory_bytes{rank=\"3\"} 1000"));
  EXPECT_THAT(text, HasSubstr("plumbline_rank_planned_bytes{rank=\"3\"} 900"));
}

}  // namespace
}  // namespace plumbline

// What GET /status says, and to whom.
#include "coordinator/api/status_report.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

TEST(StatusHistory, RatesAreOfTheSample) {
  StatusHistory history;
  history.Observe(kStart, {.prompt_tokens = 500, .generated_tokens = 100}, {});
  EXPECT_EQ(history.From(0).next, 0u);
  LatencyWindow window;
  window.first_token.Add(absl::Milliseconds(10), 1);
  window.first_token.Add(absl::Milliseconds(50), 1);
  history.Observe(kStart + absl::Seconds(2),
                  {.queued = 3, .running = 7, .prompt_tokens = 540, .generated_tokens = 101}, window);
  const StatusHistory::Slice slice = history.From(0);
  ASSERT_EQ(slice.samples.size(), 1u);
  const StatusSample& sample = slice.samples[0];
  EXPECT_EQ(sample.time, kStart + absl::Seconds(2));
  EXPECT_DOUBLE_EQ(sample.prompt_tokens_per_second, 20);
  EXPECT_DOUBLE_EQ(sample.generated_tokens_per_second, 0.5);
  EXPECT_EQ(sample.queued, 3);
  EXPECT_EQ(sample.running, 7);
  ASSERT_TRUE(sample.first_token.has_value());
  EXPECT_DOUBLE_EQ(sample.first_token->mean_ms, 30);
  EXPECT_DOUBLE_EQ(sample.first_token->max_ms, 50);
  EXPECT_FALSE(sample.per_token.has_value());
}

TEST(StatusHistory, KeepsTheLastOnesAndGivesWhatIsNew) {
  StatusHistory history;
  for (int64_t i = 0; i <= 310; ++i) {  // sample i - 1 ends
    history.Observe(kStart + absl::Seconds(i), {.running = i - 1}, {});
  }
  EXPECT_EQ(history.From(0).next, 310u);
  EXPECT_EQ(history.From(0).samples.size(), 300u);
  EXPECT_EQ(history.From(0).samples.front().running, 10);
  ASSERT_EQ(history.From(308).samples.size(), 2u);
  EXPECT_EQ(history.From(308).samples.front().running, 308);
  EXPECT_TRUE(history.From(310).samples.empty());
  EXPECT_TRUE(history.From(100000).samples.empty());
}

class FixedEngine final : public Engine {
 public:
  absl::StatusOr<uint64_t> Submit(GenerationRequest, Sink) override { return absl::UnimplementedError(""); }
  void Cancel(uint64_t) override {}
  bool Drain(absl::Time) override { return true; }
  EngineStats Stats() const override {
    return {.queued = 2, .running = 1, .blocks_total = 100, .blocks_used = 9, .blocks_cached = 40,
            .prefix_query_tokens = 1000, .prefix_hit_tokens = 640, .ready = true};
  }
};

class TwoRanks final : public ClusterInfo {
 public:
  ClusterSnapshot Snapshot() const override {
    return {.epoch = 4, .tp = 1, .pp = 2, .arithmetic = "cpu-test-1", .ready = true, .stalled_for = absl::Milliseconds(2500),
            .ranks = {{.rank = 0, .first_layer = 0, .last_layer = 3, .host = "a", .pid = 12, .state = "ready", .steps = 5,
                       .rss_bytes = 2048, .planned_bytes = 1024, .operation = "waiting in send 5 of step 5"},
                      {.rank = 1, .stage = 1, .first_layer = 3, .last_layer = 4, .host = "b", .state = "lost"}},
            .num_faults = 2, .last_fault = last_fault};
  }

  std::optional<ClusterFault> last_fault;
};

class StatusReportTest : public ::testing::Test {
 protected:
  std::shared_ptr<RequestTrace> BeginFor(const Caller& caller, const std::string& id) {
    auto trace = requests_.Begin({.endpoint = "/v1/completions", .offered_id = id});
    trace->SetCaller(caller);
    trace->BeginGeneration({.model = "demo", .prompt_tokens = 12});
    return trace;
  }
  Json Get(const std::string& query = "", const Caller& caller = {}) {
    const auto text = report_.Json(query, caller);
    EXPECT_TRUE(text.ok()) << text.status();
    return Json::parse(text.value_or("null"));
  }

  FixedEngine engine_;
  TwoRanks cluster_;
  ServedModel model_ = {.name = "demo\xff", .max_model_len = 200, .fingerprint = "f1"};
  RequestTracker requests_;
  StatusReport report_{{.engine = &engine_, .model = &model_, .cluster = &cluster_, .requests = &requests_,
                        .sample_interval = absl::Milliseconds(5)}};
};

TEST_F(StatusReportTest, ShowsClusterCachesAndModel) {
  const Json status = Get();
  EXPECT_EQ(status["ready"], true);
  EXPECT_EQ(status["model"]["name"], "demo\xef\xbf\xbd");  // bytes that are not UTF-8 do not break the JSON
  EXPECT_EQ(status["cluster"]["arithmetic"], "cpu-test-1");
  EXPECT_EQ(status["cluster"]["epoch"], 4);
  const Json& ranks = status["cluster"]["ranks"];
  ASSERT_EQ(ranks.size(), 2u);
  EXPECT_EQ(ranks[0]["first_layer"], 0);
  EXPECT_EQ(ranks[0]["num_layers"], 3);
  EXPECT_EQ(ranks[0]["memory_bytes"], 2048);
  EXPECT_EQ(ranks[0]["planned_bytes"], 1024);
  EXPECT_EQ(ranks[1]["first_layer"], 3);
  EXPECT_EQ(ranks[1]["num_layers"], 1);
  EXPECT_EQ(ranks[1]["host"], "b");
  EXPECT_EQ(ranks[1]["state"], "lost");
  EXPECT_EQ(status["engine"]["queued"], 2);
  EXPECT_EQ(status["engine"]["kv_blocks_used"], 9);
  EXPECT_EQ(status["prefix_cache"]["hit_tokens"], 640);
  EXPECT_EQ(status["requests"]["count"], 0);
}

TEST_F(StatusReportTest, ShowsWhatRanksAreAtAndTheLastFault) {
  const Json before = Get()["cluster"];
  EXPECT_EQ(before["stalled_ms"], 2500);
  EXPECT_EQ(before["ranks"][0]["operation"], "waiting in send 5 of step 5");
  EXPECT_EQ(before["faults"], 2);
  EXPECT_TRUE(before["last_fault"].is_null());
  cluster_.last_fault = ClusterFault{.culprits = {{.rank = 1, .host = "b", .pid = 13, .operation = "idle after step 4"}},
                                     .reason = "it stood still",
                                     .at = kStart};
  EXPECT_EQ(Get()["cluster"]["last_fault"],
            Json::parse(R"({"time_ms": 1700000000000, "reason": "it stood still",
                            "culprits": [{"rank": 1, "host": "b", "pid": 13, "operation": "idle after step 4"}]})"));
}

TEST_F(StatusReportTest, AKeySeesItsOwnRequestsAndTheOperatorAll) {
  const Caller alice{.key_id = 1, .name = "alice"}, bob{.key_id = 2, .name = "bob"};
  const auto first = BeginFor(alice, "a"), second = BeginFor(bob, "b");
  second->AddTokens(0, 5, absl::Now());
  const Json all = Get()["requests"];
  ASSERT_EQ(all["oldest"].size(), 2u);
  EXPECT_EQ(all["oldest"][0]["key"], "alice");
  EXPECT_EQ(all["oldest"][0]["state"], "waiting");
  EXPECT_EQ(all["oldest"][1]["state"], "generating");
  EXPECT_EQ(all["oldest"][1]["prompt_tokens"], 12);
  EXPECT_EQ(all["oldest"][1]["generated_tokens"], 5);
  const Json own = Get("", bob)["requests"];
  EXPECT_EQ(own["count"], 1);
  ASSERT_EQ(own["oldest"].size(), 1u);
  EXPECT_EQ(own["oldest"][0]["id"], "b");
}

TEST_F(StatusReportTest, ListsTheOldestHundred) {
  std::vector<std::shared_ptr<RequestTrace>> traces;
  for (int i = 0; i < 103; ++i) traces.push_back(BeginFor({}, "r" + std::to_string(i)));
  const Json requests = Get()["requests"];
  EXPECT_EQ(requests["count"], 103);
  ASSERT_EQ(requests["oldest"].size(), 100u);
  EXPECT_EQ(requests["oldest"][99]["id"], "r99");
}

TEST_F(StatusReportTest, TakesSamplesByItselfAndGivesWhatIsNew) {
  uint64_t next = 0;
  for (int i = 0; i < 2000 && next < 3; ++i) {
    next = Get()["history"]["next"];
    absl::SleepFor(absl::Milliseconds(1));
  }
  ASSERT_GE(next, 3u);
  const Json history = Get("since=1")["history"];
  for (const auto& [name, column] : history["samples"].items()) {
    EXPECT_EQ(column.size() + 1, history["next"].get<uint64_t>()) << name;
  }
  EXPECT_EQ(history["samples"]["queued"][0], 2);
  EXPECT_TRUE(history["samples"]["first_token_ms"][0].is_null());
}

TEST_F(StatusReportTest, RefusesOtherParameters) {
  for (const char* query : {"since=", "since=x", "since=-1", "until=3", "since=1&x=2"}) {
    EXPECT_EQ(report_.Json(query, {}).status().code(), absl::StatusCode::kInvalidArgument) << query;
  }
}

}  // namespace
}  // namespace plumbline

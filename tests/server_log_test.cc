// The server's log: every line of the JSON form is one object, and no name can break out of its field.
#include "cli/server_log.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

using Json = nlohmann::json;

std::vector<std::string> Lines(ServerLog::Format format, const std::function<void(ServerLog&)>& write) {
  std::FILE* file = std::tmpfile();
  {
    ServerLog log(format, file);
    write(log);
  }
  std::rewind(file);
  std::vector<std::string> lines;
  std::string line;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) {
    if (c != '\n') {
      line += static_cast<char>(c);
      continue;
    }
    lines.push_back(std::exchange(line, ""));
  }
  std::fclose(file);
  if (!line.empty()) lines.push_back(line + " (no end of line)");
  return lines;
}

RequestRecord Record() {
  return {.id = "r-1",
          .endpoint = "/v1/chat/completions",
          .key_id = 2,
          .key = "al\"ice\nevent=x\xff",
          .model = "demo",
          .status = 200,
          .prompt_tokens = 70,
          .cached_tokens = 64,
          .generated_tokens = 9,
          .to_first_token = absl::Microseconds(12340),
          .age = absl::Milliseconds(250)};
}

TEST(ServerLog, ARequestIsOneObject) {
  const auto lines = Lines(ServerLog::Format::kJson, [](ServerLog& log) { log.Request(Record()); });
  ASSERT_EQ(lines.size(), 1u);
  Json json = Json::parse(lines[0]);
  EXPECT_EQ(json["time"].get<std::string>().size(), std::string("2026-01-02T03:04:05.678Z").size());
  json.erase("time");
  EXPECT_EQ(json, (Json{{"event", "request"},
                        {"id", "r-1"},
                        {"protocol", "http"},
                        {"endpoint", "/v1/chat/completions"},
                        {"status", 200},
                        {"key", "al\"ice\nevent=x\xef\xbf\xbd"},
                        {"model", "demo"},
                        {"prompt_tokens", 70},
                        {"cached_tokens", 64},
                        {"generated_tokens", 9},
                        {"first_token_ms", 12.34},
                        {"total_ms", 250.0}}));
}

TEST(ServerLog, ARequestIsOneLineOfText) {
  const auto lines = Lines(ServerLog::Format::kText, [](ServerLog& log) { log.Request(Record()); });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0],
            "request id=\"r-1\" protocol=\"http\" endpoint=\"/v1/chat/completions\" status=200 "
            "key=\"al\\\"ice\\nevent=x\xef\xbf\xbd\" model=\"demo\" prompt_tokens=70 cached_tokens=64 "
            "generated_tokens=9 first_token_ms=12.34 total_ms=250.0");
}

TEST(ServerLog, GoodAnswersToPollsAreLeftOut) {
  const auto lines = Lines(ServerLog::Format::kJson, [](ServerLog& log) {
    for (const char* endpoint : {"/", "/web/", "/status", "/health", "/ready", "/metrics"}) {
      log.Request({.endpoint = endpoint, .status = 200});
    }
    log.Request({.endpoint = "/ready", .status = 503});
    log.Request({.endpoint = "/v1/models", .status = 200});
  });
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(Json::parse(lines[0])["endpoint"], "/ready");
  EXPECT_EQ(Json::parse(lines[1])["endpoint"], "/v1/models");
}

TEST(ServerLog, ClusterEventsCarryFields) {
  const ClusterEvent lost{.kind = ClusterEvent::Kind::kWorkerLost, .text = "lost rank 1", .epoch = 3, .rank = 1,
                          .host = "h", .pid = 77};
  const ClusterEvent ready{.kind = ClusterEvent::Kind::kEpochReady, .text = "epoch 4 is ready", .epoch = 4};
  const auto write = [&](ServerLog& log) {
    log.Cluster(lost);
    log.Cluster(ready);
    log.WorkerLine(2, "out of \"memory\"");
  };
  EXPECT_EQ(Lines(ServerLog::Format::kText, write),
            (std::vector<std::string>{"lost rank 1", "epoch 4 is ready", "[rank 2] out of \"memory\""}));
  const auto lines = Lines(ServerLog::Format::kJson, write);
  ASSERT_EQ(lines.size(), 3u);
  const Json first = Json::parse(lines[0]), second = Json::parse(lines[1]), third = Json::parse(lines[2]);
  EXPECT_EQ(first["event"], "worker_lost");
  EXPECT_EQ(first["epoch"], 3);
  EXPECT_EQ(first["rank"], 1);
  EXPECT_EQ(first["host"], "h");
  EXPECT_EQ(first["pid"], 77);
  EXPECT_EQ(first["message"], "lost rank 1");
  EXPECT_EQ(second["event"], "epoch_ready");
  EXPECT_FALSE(second.contains("rank"));
  EXPECT_EQ(third["event"], "worker_line");
  EXPECT_EQ(third["rank"], 2);
}

TEST(ServerLog, TakesWhatGoesToSpdlog) {
  const auto write = [](ServerLog&) { spdlog::error("API keys: {}", "disk"); };
  EXPECT_EQ(Lines(ServerLog::Format::kText, write), std::vector<std::string>{"error: API keys: disk"});
  const Json json = Json::parse(Lines(ServerLog::Format::kJson, write).at(0));
  EXPECT_EQ(json["level"], "error");
  EXPECT_EQ(json["message"], "API keys: disk");
}

}  // namespace
}  // namespace plumbline

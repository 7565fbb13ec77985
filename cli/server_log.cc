#include "cli/server_log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

// spdlog's lines, for the log.
class ForwardingSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit ForwardingSink(ServerLog* log) : log_(log) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const auto level = spdlog::level::to_string_view(message.level);
    log_->Message(std::string(level.data(), level.size()).c_str(),
                  std::string(message.payload.data(), message.payload.size()));
  }
  void flush_() override {}

  ServerLog* const log_;
};

bool IsRoutine(const RequestRecord& record) {
  static constexpr const char* kPolled[] = {"/", "/web/", "/status", "/health", "/ready", "/metrics"};
  return record.status == 200 && std::find(std::begin(kPolled), std::end(kPolled), record.endpoint) != std::end(kPolled);
}

double Milliseconds(absl::Duration duration) { return std::round(absl::ToDoubleMilliseconds(duration) * 100) / 100; }

Json EventJson(const char* event) {
  return {{"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone())}, {"event", event}};
}

// Names of keys and lines of workers are whatever bytes somebody chose.
std::string Print(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json FieldsOf(const RequestRecord& record) {
  Json json = EventJson("request");
  json["id"] = record.id;
  json["protocol"] = record.protocol == RequestProtocol::kHttp ? "http" : "grpc";
  json["endpoint"] = record.endpoint;
  json["status"] = record.status;
  json["key"] = record.key;
  json["model"] = record.model;
  json["prompt_tokens"] = record.prompt_tokens;
  json["cached_tokens"] = record.cached_tokens;
  json["generated_tokens"] = record.generated_tokens;
  json["first_token_ms"] = record.to_first_token ? Json(Milliseconds(*record.to_first_token)) : Json();
  json["total_ms"] = Milliseconds(record.age);
  return json;
}

Json FieldsOf(const ClusterEvent& event) {
  Json json = EventJson(NameOf(event.kind));
  json["epoch"] = event.epoch;
  if (event.rank >= 0) {
    json["rank"] = event.rank;
    json["host"] = event.host;
    json["pid"] = event.pid;
  }
  json["message"] = event.text;
  return json;
}

// The same fields as words; strings as JSON has them, so that none can pass for a field or a line.
std::string TextOf(const RequestRecord& record) {
  std::string text = "request";
  const Json fields = FieldsOf(record);
  for (const auto& [name, value] : fields.items()) {
    if (name != "time" && name != "event" && !value.is_null() && value != "") {
      absl::StrAppend(&text, " ", name, "=", Print(value));
    }
  }
  return text;
}

}  // namespace

ServerLog::ServerLog(Format format, std::FILE* file) : format_(format), file_(file) {
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("server", std::make_shared<ForwardingSink>(this)));
}

ServerLog::~ServerLog() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("none")); }

void ServerLog::Request(const RequestRecord& record) {
  if (IsRoutine(record)) return;
  Write(format_ == Format::kJson ? Print(FieldsOf(record)) : TextOf(record));
}

void ServerLog::Cluster(const ClusterEvent& event) {
  Write(format_ == Format::kJson ? Print(FieldsOf(event)) : event.text);
}

void ServerLog::WorkerLine(int rank, const std::string& line) {
  if (format_ == Format::kText) return Write(absl::StrCat("[rank ", rank, "] ", line));
  Json json = EventJson("worker_line");
  json["rank"] = rank;
  json["message"] = line;
  Write(Print(json));
}

void ServerLog::Message(const char* level, const std::string& text) {
  if (format_ == Format::kText) return Write(absl::StrCat(level, ": ", text));
  Json json = EventJson("message");
  json["level"] = level;
  json["message"] = text;
  Write(Print(json));
}

void ServerLog::Write(std::string line) {
  line += '\n';
  const std::lock_guard lock(mutex_);
  std::fwrite(line.data(), 1, line.size(), file_);
  std::fflush(file_);
}

}  // namespace plumbline

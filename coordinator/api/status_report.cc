#include "coordinator/api/status_report.h"

#include <cmath>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/fault_json.h"
#include "coordinator/api/readiness.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxListedRequests = 100;

absl::StatusOr<uint64_t> SinceOf(std::string_view query) {
  constexpr std::string_view kSince = "since=";
  uint64_t since = 0;
  if (query.empty()) return since;
  if (!query.starts_with(kSince) || !absl::SimpleAtoi(std::string(query.substr(kSince.size())), &since)) {
    return InvalidField("since", "the only parameter is since=N, N the history.next of an earlier answer");
  }
  return since;
}

double Rounded(double value) { return std::round(value * 100) / 100; }

Json LatencyJson(const std::optional<StatusSample::Latency>& latency, double StatusSample::Latency::*field) {
  return latency ? Json(Rounded((*latency).*field)) : Json();
}

Json HistoryJson(const StatusHistory::Slice& slice) {
  Json columns = {{"time", Json::array()},
                  {"generated_tokens_per_second", Json::array()},
                  {"prompt_tokens_per_second", Json::array()},
                  {"running", Json::array()},
                  {"queued", Json::array()},
                  {"first_token_ms", Json::array()},
                  {"first_token_max_ms", Json::array()},
                  {"per_token_ms", Json::array()},
                  {"per_token_max_ms", Json::array()}};
  for (const StatusSample& sample : slice.samples) {
    columns["time"].push_back(absl::ToUnixMillis(sample.time));
    columns["generated_tokens_per_second"].push_back(Rounded(sample.generated_tokens_per_second));
    columns["prompt_tokens_per_second"].push_back(Rounded(sample.prompt_tokens_per_second));
    columns["running"].push_back(sample.running);
    columns["queued"].push_back(sample.queued);
    columns["first_token_ms"].push_back(LatencyJson(sample.first_token, &StatusSample::Latency::mean_ms));
    columns["first_token_max_ms"].push_back(LatencyJson(sample.first_token, &StatusSample::Latency::max_ms));
    columns["per_token_ms"].push_back(LatencyJson(sample.per_token, &StatusSample::Latency::mean_ms));
    columns["per_token_max_ms"].push_back(LatencyJson(sample.per_token, &StatusSample::Latency::max_ms));
  }
  return {{"next", slice.next}, {"samples", std::move(columns)}};
}

Json RankJson(const RankInfo& rank) {
  return {{"rank", rank.rank},
          {"stage", rank.stage},
          {"tp_index", rank.tp_index},
          {"first_layer", rank.first_layer},
          {"num_layers", rank.last_layer - rank.first_layer},
          {"host", rank.host},
          {"pid", rank.pid},
          {"state", rank.state},
          {"load_fraction", Rounded(rank.load_fraction)},
          {"steps", rank.steps},
          {"operation", rank.operation},
          {"memory_bytes", rank.rss_bytes},
          {"planned_bytes", rank.planned_bytes},
          {"weight_bytes", rank.weight_bytes}};
}

Json ClusterJson(const ClusterSnapshot& cluster) {
  Json ranks = Json::array();
  for (const RankInfo& rank : cluster.ranks) ranks.push_back(RankJson(rank));
  return {{"epoch", cluster.epoch},
          {"tp", cluster.tp},
          {"pp", cluster.pp},
          {"arithmetic", cluster.arithmetic},
          {"stalled_ms", absl::ToInt64Milliseconds(cluster.stalled_for)},
          {"faults", cluster.num_faults},
          {"last_fault", cluster.last_fault ? FaultJson(*cluster.last_fault) : Json()},
          {"ranks", std::move(ranks)}};
}

Json EngineJson(const EngineStats& stats) {
  return {{"running", stats.running},
          {"queued", stats.queued},
          {"steps", stats.steps},
          {"prompt_tokens", stats.prompt_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"sequences_finished", stats.requests_finished},
          {"sequences_failed", stats.requests_failed},
          {"preemptions", stats.preemptions},
          {"replays", stats.replays},
          {"kv_blocks", stats.blocks_total},
          {"kv_blocks_used", stats.blocks_used},
          {"state_slots", stats.state_slots_total},
          {"state_slots_used", stats.state_slots_used}};
}

Json PrefixCacheJson(const EngineStats& stats) {
  return {{"blocks", stats.blocks_cached},
          {"states", stats.states_cached},
          {"query_tokens", stats.prefix_query_tokens},
          {"hit_tokens", stats.prefix_hit_tokens}};
}

Json RequestsJson(const std::vector<RequestRecord>& live, const Caller& caller) {
  size_t count = 0;
  Json listed = Json::array();
  for (const RequestRecord& request : live) {
    if (!caller.is_operator() && request.key_id != caller.key_id) continue;
    if (++count > kMaxListedRequests) continue;
    listed.push_back({{"id", request.id},
                      {"key", request.key},
                      {"endpoint", request.endpoint},
                      {"model", request.model},
                      {"state", request.to_first_token ? "generating" : "waiting"},
                      {"prompt_tokens", request.prompt_tokens},
                      {"generated_tokens", request.generated_tokens},
                      {"age_ms", absl::ToInt64Milliseconds(request.age)}});
  }
  return {{"count", count}, {"oldest", std::move(listed)}};
}

}  // namespace

StatusReport::StatusReport(const StatusReportOptions& options)
    : options_(options), started_(absl::Now()), sampler_([this] { TakeSamples(); }) {}

StatusReport::~StatusReport() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  stop_.notify_all();
  sampler_.join();
}

void StatusReport::TakeSamples() {
  std::unique_lock lock(mutex_);
  do {
    history_.Observe(absl::Now(), options_.engine->Stats(), options_.requests->TakeWindow());
  } while (!stop_.wait_for(lock, absl::ToChronoMilliseconds(options_.sample_interval), [this] { return is_stopping_; }));
}

absl::StatusOr<std::string> StatusReport::Json(std::string_view query, const Caller& caller) const {
  PL_ASSIGN_OR_RETURN(const uint64_t since, SinceOf(query));
  const EngineStats stats = options_.engine->Stats();
  const absl::Status readiness = Readiness(stats);
  nlohmann::ordered_json json;
  json["started_ms"] = absl::ToUnixMillis(started_);
  json["now_ms"] = absl::ToUnixMillis(absl::Now());
  json["ready"] = readiness.ok();
  json["not_ready_because"] = std::string(readiness.message());
  json["draining"] = stats.draining;
  json["model"] = {{"name", options_.model->name},
                   {"max_model_len", options_.model->max_model_len},
                   {"numerics", options_.model->numerics},
                   {"fingerprint", options_.model->fingerprint}};
  json["cluster"] = options_.cluster == nullptr ? nlohmann::ordered_json() : ClusterJson(options_.cluster->Snapshot());
  json["engine"] = EngineJson(stats);
  json["prefix_cache"] = PrefixCacheJson(stats);
  json["requests"] = RequestsJson(options_.requests->Live(), caller);
  {
    const std::lock_guard lock(mutex_);
    json["history"] = HistoryJson(history_.From(since));
  }
  // Names of keys and models are whatever bytes somebody chose.
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace plumbline

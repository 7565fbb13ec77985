#include "coordinator/api/api_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

namespace plumbline {
namespace {

using prometheus::Histogram;

const Histogram::BucketBoundaries kSecondsToFirstToken = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                                                          1,     2,    5,    10,   20,  60,  120};
const Histogram::BucketBoundaries kSecondsPerToken = {0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05,
                                                      0.075, 0.1,   0.2,   0.5,  1,    2};
const Histogram::BucketBoundaries kSecondsOfRequest = {0.01, 0.05, 0.1, 0.5, 1,   2,  5,
                                                       10,   20,   60,  120, 300, 600};

prometheus::MetricFamily FamilyOf(const char* name, const char* help, prometheus::MetricType type,
                                  double value) {
  prometheus::MetricFamily family{name, help, type, {}};
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) metric.counter.value = value;
  if (type == prometheus::MetricType::Gauge) metric.gauge.value = value;
  family.metric.push_back(metric);
  return family;
}

// A snapshot, so nothing need be kept up to date between scrapes.
std::vector<prometheus::MetricFamily> FamiliesOf(const EngineStats& stats) {
  constexpr auto kCounter = prometheus::MetricType::Counter;
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  const auto number = [](auto value) { return static_cast<double>(value); };
  return {
      FamilyOf("plumbline_queued_sequences", "Sequences waiting for their first step.", kGauge,
               number(stats.queued)),
      FamilyOf("plumbline_running_sequences", "Sequences in the batch.", kGauge,
               number(stats.running)),
      FamilyOf("plumbline_kv_blocks", "KV blocks laid out.", kGauge, number(stats.blocks_total)),
      FamilyOf("plumbline_kv_blocks_used", "KV blocks in use.", kGauge, number(stats.blocks_used)),
      FamilyOf("plumbline_state_slots", "Recurrent-state slots laid out.", kGauge,
               number(stats.state_slots_total)),
      FamilyOf("plumbline_state_slots_used", "Recurrent-state slots in use.", kGauge,
               number(stats.state_slots_used)),
      FamilyOf("plumbline_prefix_cache_blocks", "KV blocks that prompts to come can take over.",
               kGauge, number(stats.blocks_cached)),
      FamilyOf("plumbline_prefix_cache_states", "Saved recurrent states.", kGauge,
               number(stats.states_cached)),
      FamilyOf("plumbline_prefix_cache_query_tokens_total",
               "Prompt tokens of sequences when they were admitted.", kCounter,
               number(stats.prefix_query_tokens)),
      FamilyOf("plumbline_prefix_cache_hit_tokens_total",
               "Those of them that came from the prefix cache.", kCounter,
               number(stats.prefix_hit_tokens)),
      FamilyOf("plumbline_sequences_accepted_total", "Sequences accepted.", kCounter,
               number(stats.requests_accepted)),
      FamilyOf("plumbline_sequences_finished_total", "Sequences finished.", kCounter,
               number(stats.requests_finished)),
      FamilyOf("plumbline_sequences_failed_total", "Sequences ended by an error.", kCounter,
               number(stats.requests_failed)),
      FamilyOf("plumbline_sequences_cancelled_total", "Sequences cancelled.", kCounter,
               number(stats.requests_cancelled)),
      FamilyOf("plumbline_sequences_refused_total", "Sequences refused, e.g. by a full queue.",
               kCounter, number(stats.requests_refused)),
      FamilyOf("plumbline_prompt_tokens_total", "Prompt tokens computed.", kCounter,
               number(stats.prompt_tokens)),
      FamilyOf("plumbline_generated_tokens_total", "Tokens generated.", kCounter,
               number(stats.generated_tokens)),
      FamilyOf("plumbline_steps_total", "Steps finished.", kCounter, number(stats.steps)),
      FamilyOf("plumbline_preemptions_total", "Sequences preempted for lack of cache or for other keys.", kCounter,
               number(stats.preemptions)),
      FamilyOf("plumbline_replays_total", "Sequences replayed after a lost cluster.", kCounter,
               number(stats.replays)),
      FamilyOf("plumbline_epoch", "Epoch of the cluster.", kGauge, number(stats.epoch)),
      FamilyOf("plumbline_ready", "1 while a cluster is there.", kGauge, stats.ready ? 1 : 0),
      FamilyOf("plumbline_draining", "1 while no requests are admitted.", kGauge,
               stats.draining ? 1 : 0),
      FamilyOf("plumbline_seconds_since_progress",
               "Since the last finished step, while work is under way.", kGauge,
               absl::ToDoubleSeconds(stats.since_progress)),
  };
}

prometheus::ClientMetric MetricOf(const StepTimes& times) {
  prometheus::ClientMetric metric;
  uint64_t count = 0;  // Prometheus' buckets are cumulative
  for (size_t i = 0; i < times.counts.size(); ++i) {
    count += times.counts[i];
    const bool is_last = i == StepTimes::kUpperBounds.size();
    metric.histogram.bucket.push_back(
        {.cumulative_count = count,
         .upper_bound = is_last ? std::numeric_limits<double>::infinity() : StepTimes::kUpperBounds[i]});
  }
  metric.histogram.sample_count = count;
  metric.histogram.sample_sum = times.sum_seconds;
  return metric;
}

std::vector<prometheus::MetricFamily> TimesOf(const EngineStats& stats) {
  using prometheus::MetricType;
  prometheus::MetricFamily steps{"plumbline_step_seconds", "Time of a step, by phase.", MetricType::Histogram, {}};
  for (size_t phase = 0; phase < stats.step_times.size(); ++phase) {
    steps.metric.push_back(MetricOf(stats.step_times[phase]));
    steps.metric.back().label = {{"phase", kStepPhaseNames[phase]}};
  }
  return {std::move(steps),
          {"plumbline_queue_seconds", "From a sequence's arrival to its first step.", MetricType::Histogram,
           {MetricOf(stats.queue_times)}}};
}

// Names are any bytes and need not differ; ids do.
std::vector<prometheus::MetricFamily> FamiliesOf(const std::vector<KeyLoad>& keys) {
  using prometheus::MetricType;
  prometheus::MetricFamily queued{"plumbline_key_queued_sequences", "Sequences waiting, by key.", MetricType::Gauge, {}};
  prometheus::MetricFamily running{
      "plumbline_key_running_sequences", "Sequences in the batch, by key.", MetricType::Gauge, {}};
  const auto add = [](prometheus::MetricFamily& family, const KeyLoad& load, int64_t value) {
    prometheus::ClientMetric metric;
    metric.label = {{"key_id", std::to_string(load.key_id)}, {"key", load.name}};
    metric.gauge.value = static_cast<double>(value);
    family.metric.push_back(std::move(metric));
  };
  for (const KeyLoad& load : keys) {
    add(queued, load, load.queued);
    add(running, load, load.running);
  }
  return {std::move(queued), std::move(running)};
}

template <typename Value>
prometheus::MetricFamily RankFamily(const ClusterSnapshot& cluster, prometheus::MetricFamily family, const Value& value) {
  for (const RankInfo& rank : cluster.ranks) {
    prometheus::ClientMetric metric;
    metric.label = {{"rank", std::to_string(rank.rank)}};
    const auto number = static_cast<double>(value(rank));
    (family.type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = number;
    family.metric.push_back(std::move(metric));
  }
  return family;
}

// One series per culprit of the last fault alone: process ids as labels would grow without bound otherwise.
prometheus::MetricFamily FamilyOf(const ClusterFault& fault) {
  prometheus::MetricFamily family{"plumbline_last_fault_timestamp_seconds",
                                  "When the last epoch was lost, and the worker that was at fault.",
                                  prometheus::MetricType::Gauge,
                                  {}};
  for (const ClusterFault::Culprit& culprit : fault.culprits) {
    prometheus::ClientMetric metric;
    metric.label = {{"rank", std::to_string(culprit.rank)},
                    {"host", culprit.host},
                    {"pid", std::to_string(culprit.pid)},
                    {"operation", culprit.operation}};
    metric.gauge.value = absl::ToDoubleSeconds(fault.at - absl::UnixEpoch());
    family.metric.push_back(std::move(metric));
  }
  return family;
}

std::vector<prometheus::MetricFamily> FamiliesOf(const ClusterSnapshot& cluster) {
  using prometheus::MetricType;
  std::vector<prometheus::MetricFamily> families = {
      RankFamily(cluster, {"plumbline_rank_ready", "1 while the rank takes part in an epoch.", MetricType::Gauge, {}},
                 [](const RankInfo& rank) { return rank.state == "ready"; }),
      RankFamily(cluster, {"plumbline_rank_steps_total", "Steps done since its worker joined.", MetricType::Counter, {}},
                 [](const RankInfo& rank) { return rank.steps; }),
      RankFamily(cluster, {"plumbline_rank_memory_bytes", "Resident memory of its worker.", MetricType::Gauge, {}},
                 [](const RankInfo& rank) { return rank.rss_bytes; }),
      RankFamily(cluster,
                 {"plumbline_rank_planned_bytes", "Weights, caches and activations as planned.", MetricType::Gauge, {}},
                 [](const RankInfo& rank) { return rank.planned_bytes; }),
      FamilyOf("plumbline_faults_total", "Epochs of the cluster that were lost.", MetricType::Counter,
               static_cast<double>(cluster.num_faults)),
  };
  if (cluster.last_fault) families.push_back(FamilyOf(*cluster.last_fault));
  return families;
}

prometheus::MetricFamily FamilyOf(const AccessControl& access) {
  prometheus::MetricFamily family{"plumbline_access_refused_total",
                                  "Requests refused for want of a key or over a key's quota.",
                                  prometheus::MetricType::Counter,
                                  {}};
  const auto num_refused = access.num_refused();
  for (size_t i = 0; i < num_refused.size(); ++i) {
    prometheus::ClientMetric metric;
    metric.label = {{"reason", NameOf(static_cast<RefusalReason>(i))}};
    metric.counter.value = static_cast<double>(num_refused[i]);
    family.metric.push_back(std::move(metric));
  }
  return family;
}

}  // namespace

struct ApiMetrics::Impl {
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& http_requests =
      prometheus::BuildCounter()
          .Name("plumbline_http_requests_total")
          .Help("HTTP requests answered, by route and status.")
          .Register(registry);
  prometheus::Family<Histogram>& http_request_seconds =
      prometheus::BuildHistogram()
          .Name("plumbline_http_request_seconds")
          .Help("From a request's arrival to the end of its answer.")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& grpc_requests =
      prometheus::BuildCounter()
          .Name("plumbline_grpc_requests_total")
          .Help("gRPC calls ended, by method and code.")
          .Register(registry);
  prometheus::Family<Histogram>& grpc_request_seconds =
      prometheus::BuildHistogram()
          .Name("plumbline_grpc_request_seconds")
          .Help("From a call's arrival to its end.")
          .Register(registry);
  Histogram& first_token = prometheus::BuildHistogram()
                               .Name("plumbline_time_to_first_token_seconds")
                               .Help("From a request's arrival to its first token.")
                               .Register(registry)
                               .Add({}, kSecondsToFirstToken);
  Histogram& per_token = prometheus::BuildHistogram()
                             .Name("plumbline_time_per_output_token_seconds")
                             .Help("Between tokens of one sequence.")
                             .Register(registry)
                             .Add({}, kSecondsPerToken);
};

ApiMetrics::ApiMetrics() : impl_(std::make_unique<Impl>()) {}
ApiMetrics::~ApiMetrics() = default;

void ApiMetrics::CountRequest(const RequestRecord& finished) {
  const std::string status = std::to_string(finished.status);
  const double seconds = absl::ToDoubleSeconds(finished.age);
  if (finished.protocol == RequestProtocol::kHttp) {
    impl_->http_requests.Add({{"route", finished.endpoint}, {"status", status}}).Increment();
    impl_->http_request_seconds.Add({{"route", finished.endpoint}}, kSecondsOfRequest).Observe(seconds);
  } else {
    impl_->grpc_requests.Add({{"method", finished.endpoint}, {"code", status}}).Increment();
    impl_->grpc_request_seconds.Add({{"method", finished.endpoint}}, kSecondsOfRequest).Observe(seconds);
  }
}

void ApiMetrics::ObserveTimeToFirstToken(absl::Duration duration) {
  impl_->first_token.Observe(absl::ToDoubleSeconds(duration));
}

void ApiMetrics::ObserveTokens(absl::Duration since_last, int64_t num_tokens) {
  const double seconds = absl::ToDoubleSeconds(since_last) / static_cast<double>(num_tokens);
  for (int64_t i = 0; i < num_tokens; ++i) impl_->per_token.Observe(seconds);
}

std::string ApiMetrics::Serialize(const Sources& sources) const {
  std::vector<prometheus::MetricFamily> families = impl_->registry.Collect();
  const auto append = [&families](std::vector<prometheus::MetricFamily> more) {
    std::move(more.begin(), more.end(), std::back_inserter(families));
  };
  append(FamiliesOf(sources.engine));
  append(TimesOf(sources.engine));
  append(FamiliesOf(sources.engine.keys));
  if (sources.cluster != nullptr) append(FamiliesOf(sources.cluster->Snapshot()));
  if (sources.access != nullptr) families.push_back(FamilyOf(*sources.access));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace plumbline

#include "coordinator/api/request_tracker.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "coordinator/api/request_id.h"

namespace plumbline {

void LatencyWindow::Series::Add(absl::Duration value, int64_t times) {
  count += times;
  sum += value * times;
  max = std::max(max, value);
}

RequestTracker::RequestTracker(OnFinished on_finished) : on_finished_(std::move(on_finished)) {}

std::shared_ptr<RequestTrace> RequestTracker::Begin(const Origin& origin) {
  RequestRecord record{.protocol = origin.protocol,
                       .id = RequestIdOf(origin.offered_id),
                       .endpoint = origin.endpoint};
  return std::make_shared<RequestTrace>(this, std::move(record), absl::Now());
}

std::vector<RequestRecord> RequestTracker::Live() const {
  const absl::Time now = absl::Now();
  const std::lock_guard lock(mutex_);
  std::vector<RequestRecord> records;
  for (const auto& [serial, trace] : live_) records.push_back(trace->Record(now));
  return records;
}

LatencyWindow RequestTracker::TakeWindow() {
  const std::lock_guard lock(mutex_);
  return std::exchange(window_, {});
}

void RequestTracker::List(const RequestTrace* trace) {
  const std::lock_guard lock(mutex_);
  live_.emplace(next_serial_++, trace);
}

void RequestTracker::Unlist(const RequestTrace* trace) {
  const std::lock_guard lock(mutex_);
  absl::erase_if(live_, [trace](const auto& entry) { return entry.second == trace; });
}

void RequestTracker::ObserveTimeToFirstToken(absl::Duration duration) {
  metrics_.ObserveTimeToFirstToken(duration);
  const std::lock_guard lock(mutex_);
  window_.first_token.Add(duration, 1);
}

void RequestTracker::ObserveTokens(absl::Duration since_last, int64_t num_tokens) {
  metrics_.ObserveTokens(since_last, num_tokens);
  const std::lock_guard lock(mutex_);
  window_.per_token.Add(since_last / num_tokens, num_tokens);
}

void RequestTracker::Finish(const RequestRecord& record) {
  metrics_.CountRequest(record);
  if (on_finished_) on_finished_(record);
}

}  // namespace plumbline

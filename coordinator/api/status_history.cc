#include "coordinator/api/status_history.h"

#include <algorithm>

namespace plumbline {
namespace {

std::optional<StatusSample::Latency> LatencyOf(const LatencyWindow::Series& series) {
  if (series.count == 0) return std::nullopt;
  return StatusSample::Latency{.mean_ms = absl::ToDoubleMilliseconds(series.sum) / static_cast<double>(series.count),
                               .max_ms = absl::ToDoubleMilliseconds(series.max)};
}

}  // namespace

void StatusHistory::Observe(absl::Time now, const EngineStats& stats, const LatencyWindow& window) {
  if (begun_at_ && now > *begun_at_) {
    const double seconds = absl::ToDoubleSeconds(now - *begun_at_);
    samples_.push_back(
        {.time = now,
         .generated_tokens_per_second = static_cast<double>(stats.generated_tokens - generated_tokens_) / seconds,
         .prompt_tokens_per_second = static_cast<double>(stats.prompt_tokens - prompt_tokens_) / seconds,
         .running = stats.running,
         .queued = stats.queued,
         .first_token = LatencyOf(window.first_token),
         .per_token = LatencyOf(window.per_token)});
    ++next_;
    if (samples_.size() > kMaxSamples) samples_.pop_front();
  }
  begun_at_ = now;
  generated_tokens_ = stats.generated_tokens;
  prompt_tokens_ = stats.prompt_tokens;
}

StatusHistory::Slice StatusHistory::From(uint64_t first) const {
  const uint64_t oldest = next_ - samples_.size();
  const uint64_t begin = std::clamp(first, oldest, next_) - oldest;
  return {.next = next_, .samples = {samples_.begin() + static_cast<int64_t>(begin), samples_.end()}};
}

}  // namespace plumbline

// StatusHistory: what the server did in each of the last minutes' seconds, for plots. Pure: no clock, no thread. Not
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/api/request_tracker.h"
#include "coordinator/engine/engine.h"

namespace plumbline {

struct StatusSample {
  absl::Time time;  // of its end
  double generated_tokens_per_second = 0;
  double prompt_tokens_per_second = 0;  // computed: without hits of the prefix cache
  int64_t running = 0;                  // sequences
  int64_t queued = 0;
  // Mean and largest of those that fell into this time; empty when none did.
  struct Latency {
    double mean_ms = 0;
    double max_ms = 0;
  };
  std::optional<Latency> first_token;
  std::optional<Latency> per_token;
};

class StatusHistory {
 public:
  static constexpr size_t kMaxSamples = 300;

  // Ends a sample. The first call only begins one: rates need two.
  void Observe(absl::Time now, const EngineStats& stats, const LatencyWindow& window);

  // Samples are numbered from 0. Those from `first` on that are still there, and the number of the next one to come.
  struct Slice {
    uint64_t next = 0;
    std::vector<StatusSample> samples;
  };
  Slice From(uint64_t first) const;

 private:
  std::optional<absl::Time> begun_at_;
  uint64_t generated_tokens_ = 0;  // when the sample began
  uint64_t prompt_tokens_ = 0;
  std::deque<StatusSample> samples_;
  uint64_t next_ = 0;
};

}  // namespace plumbline

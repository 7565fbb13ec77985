// StepClock: how long a step may take, learnt from those that finished. A step in which something hangs is found in
// seconds, on a machine where steps take milliseconds, and a long prompt on a slow one is left in peace. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/time/time.h"

namespace plumbline {

class StepClock {
 public:
  struct Options {
    absl::Duration least = absl::Seconds(4);   // no step is late before
    absl::Duration most = absl::Seconds(120);  // every step is late after; also while nothing is known
    double margin = 10;  // times what like steps took; covers caches that are cold and neighbours that are loud
  };
  explicit StepClock(Options options) : options_(options) {}

  // A step of so many rows took so long, from the end of the step before or from its submission, whichever was later.
  void Observe(int64_t num_rows, absl::Duration took);

  // From the same moment. Steps of few rows cost the weights, steps of many cost their rows: each kind is judged by its
  // own, at the slowest of the last ones, so that steps which grow slowly with the context are never late.
  absl::Duration DeadlineOf(int64_t num_rows) const;

 private:
  static constexpr int64_t kFewRows = 64;
  static constexpr size_t kRemembered = 32;

  static void Remember(std::deque<absl::Duration>& durations, absl::Duration took);

  const Options options_;
  std::deque<absl::Duration> few_;      // of whole steps
  std::deque<absl::Duration> per_row_;  // of steps of many rows
};

}  // namespace plumbline

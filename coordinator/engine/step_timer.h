// StepTimer: how long steps take, by phase. A step's time runs from the end of the one before it, or from its
// submission when that is later: with several steps in flight each is counted once. Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "absl/time/time.h"
#include "parallel/step_plan.h"

namespace plumbline {

// Decode: every sequence adds one generated token. Prefill: none does (prompts, and replays of several tokens).
enum class StepPhase { kPrefill, kDecode, kMixed };
inline constexpr int kNumStepPhases = 3;
inline constexpr std::array<const char*, kNumStepPhases> kStepPhaseNames = {"prefill", "decode", "mixed"};

// As Prometheus understands a histogram, but counts are of each bucket alone.
struct StepTimes {
  static constexpr std::array<double, 14> kUpperBounds = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
                                                          0.1,    0.2,   0.5,   1,     2,    5,    20};  // seconds
  std::array<uint64_t, kUpperBounds.size() + 1> counts = {};  // the last: above all bounds
  double sum_seconds = 0;

  void Observe(absl::Duration took);
};

class StepTimer {
 public:
  void Submitted(const StepPlan& plan, absl::Time now);
  // The oldest step in flight is done.
  void Finished(absl::Time now);
  // Steps in flight will not finish.
  void Lost() { in_flight_.clear(); }

  const std::array<StepTimes, kNumStepPhases>& times() const { return times_; }  // by phase

 private:
  struct InFlight {
    StepPhase phase;
    absl::Time submitted_at;
  };
  std::deque<InFlight> in_flight_;
  absl::Time last_finished_ = absl::InfinitePast();
  std::array<StepTimes, kNumStepPhases> times_;
};

}  // namespace plumbline

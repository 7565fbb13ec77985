#include "coordinator/engine/step_timer.h"

#include <algorithm>

#include "kernels/check.h"

namespace plumbline {
namespace {

StepPhase PhaseOf(const StepPlan& plan) {
  bool has_decode = false, has_prefill = false;
  for (const SequencePlan& sequence : plan.sequences) {
    const bool is_decode = sequence.tokens.size() == 1 && sequence.num_prompt_tokens == 0;
    (is_decode ? has_decode : has_prefill) = true;
  }
  if (has_decode && has_prefill) return StepPhase::kMixed;
  return has_decode ? StepPhase::kDecode : StepPhase::kPrefill;
}

}  // namespace

void StepTimes::Observe(absl::Duration took) {
  const double seconds = absl::ToDoubleSeconds(took);
  // Prometheus' bounds are inclusive.
  const auto bucket = std::lower_bound(kUpperBounds.begin(), kUpperBounds.end(), seconds);
  ++counts[static_cast<size_t>(bucket - kUpperBounds.begin())];
  sum_seconds += seconds;
}

void StepTimer::Submitted(const StepPlan& plan, absl::Time now) {
  in_flight_.push_back({PhaseOf(plan), now});
}

void StepTimer::Finished(absl::Time now) {
  PL_CHECK(!in_flight_.empty());
  const InFlight step = in_flight_.front();
  in_flight_.pop_front();
  times_[static_cast<size_t>(step.phase)].Observe(now - std::max(step.submitted_at, last_finished_));
  last_finished_ = now;
}

}  // namespace plumbline

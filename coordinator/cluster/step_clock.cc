#include "coordinator/cluster/step_clock.h"

#include <algorithm>

namespace plumbline {

void StepClock::Remember(std::deque<absl::Duration>& durations, absl::Duration took) {
  durations.push_back(took);
  if (durations.size() > kRemembered) durations.pop_front();
}

void StepClock::Observe(int64_t num_rows, absl::Duration took) {
  if (num_rows <= kFewRows) {
    Remember(few_, took);
  } else {
    Remember(per_row_, took / num_rows);
  }
}

absl::Duration StepClock::DeadlineOf(int64_t num_rows) const {
  const std::deque<absl::Duration>& known = num_rows <= kFewRows ? few_ : per_row_;
  if (known.empty()) return options_.most;
  const absl::Duration slowest = *std::max_element(known.begin(), known.end());
  const absl::Duration expected = num_rows <= kFewRows ? slowest : slowest * num_rows;
  return std::clamp(expected * options_.margin, options_.least, options_.most);
}

}  // namespace plumbline

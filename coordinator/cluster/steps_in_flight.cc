#include "coordinator/cluster/steps_in_flight.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace plumbline {

void StepsInFlight::BeginEpoch() {
  steps_.clear();
  num_submitted_ = num_done_ = 0;
}

void StepsInFlight::Submit(uint64_t step, int64_t num_rows, absl::Time now) {
  if (steps_.empty()) front_began_at_ = quiet_since_ = now;
  steps_.push_back({step, num_rows});
  ++num_submitted_;
}

void StepsInFlight::Finish(absl::Time now) {
  PL_CHECK(!steps_.empty());
  clock_.Observe(steps_.front().num_rows, now - front_began_at_);
  steps_.pop_front();
  front_began_at_ = quiet_since_ = now;
  ++num_done_;
}

void StepsInFlight::Excuse(absl::Duration pause) {
  front_began_at_ += pause;
  quiet_since_ += pause;
}

absl::Duration StepsInFlight::QuietFor(absl::Time now) const {
  return steps_.empty() ? absl::ZeroDuration() : now - quiet_since_;
}

absl::Status StepsInFlight::CheckMoves(absl::Time now) const {
  if (steps_.empty()) return absl::OkStatus();
  const absl::Duration deadline = clock_.DeadlineOf(steps_.front().num_rows);
  if (QuietFor(now) <= deadline) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("step ", steps_.front().number, " has stood still for ",
                                                  absl::FormatDuration(deadline)));
}

}  // namespace plumbline

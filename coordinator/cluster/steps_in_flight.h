// StepsInFlight: the steps of an epoch that are submitted and not done, oldest first, and whether they stand still: as long
// as some rank comes further, a step may take what it takes. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/cluster/step_clock.h"

namespace plumbline {

class StepsInFlight {
 public:
  explicit StepsInFlight(StepClock::Options options) : clock_(options) {}

  void BeginEpoch();
  void Submit(uint64_t step, int64_t num_rows, absl::Time now);
  // Whether the next result must be of this step.
  bool IsDue(uint64_t step) const { return !steps_.empty() && steps_.front().number == step; }
  // The oldest step is done. REQUIRES: one is in flight.
  void Finish(absl::Time now);
  // A rank has entered or left a call.
  void NoteProgress(absl::Time now) { quiet_since_ = now; }
  // The coordinator itself stood still for so long.
  void Excuse(absl::Duration pause);

  // How long nothing has moved; zero without steps.
  absl::Duration QuietFor(absl::Time now) const;
  // DEADLINE_EXCEEDED, naming the oldest step, when nothing has moved for longer than such a step takes as a whole.
  absl::Status CheckMoves(absl::Time now) const;

  uint64_t num_submitted() const { return num_submitted_; }  // in this epoch
  uint64_t num_done() const { return num_done_; }

 private:
  struct Step {
    uint64_t number = 0;
    int64_t num_rows = 0;
  };

  StepClock clock_;  // from epoch to epoch
  std::deque<Step> steps_;
  absl::Time front_began_at_;  // the oldest step was the next one to be done
  absl::Time quiet_since_;     // the last time anything moved
  uint64_t num_submitted_ = 0;
  uint64_t num_done_ = 0;
};

}  // namespace plumbline

// Scheduler: which tokens of which sequences make the next step. Continuous batching: first
// sequences that decode, one token each, then prompts (and replays) in order of arrival within the
// token budget, then waiting sequences as long as caches are free. A prompt is cut on the absolute
// grid of kGridTokens only.
//
// Pure: no tensors, no I/O, no clock but the one it is given. Not thread-safe.
//
// No starvation: a waiting sequence is younger than every running one, nobody overtakes inside a
// phase, decodes take turns, and only younger sequences are preempted for an older one (freed,
// recomputed from their tokens later). Steps run in order on every rank, so caches may be handed on
// while a step that uses them is still in flight.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/time/time.h"
#include "coordinator/engine/block_manager.h"
#include "coordinator/engine/sequence.h"
#include "coordinator/engine/step_runner.h"
#include "parallel/step_plan.h"

namespace plumbline {

// One sequence's part of a step.
struct ScheduledRows {
  uint64_t sequence_id = 0;
  Sequence* sequence = nullptr;  // null when it was removed while the step was in flight
  int64_t start = 0;
  int64_t count = 0;
  bool draw_token = false;
  int64_t num_scored = 0;        // targets
  int64_t first_logit_row = -1;  // position of the first row of logits wanted; -1: none
};

class Scheduler {
 public:
  explicit Scheduler(int64_t max_running);

  // A new cluster with empty caches: whatever ran on an older one will be recomputed. REQUIRES:
  // capacity.max_step_tokens
  // >= kGridTokens, and every sequence present Fits.
  void Reset(uint64_t epoch, const ClusterCapacity& capacity);
  // The cluster is gone: no steps until the next Reset. Returns how many sequences had begun to
  // run.
  int64_t Lose();

  // Whether the caches could hold the sequence if it were alone.
  static bool Fits(const ClusterCapacity& capacity, int64_t max_cached);

  // The caller keeps the sequence alive until it is removed. Ids ascend.
  void Add(Sequence* sequence);
  // From any state; its caches are free at once.
  void Remove(Sequence* sequence);

  // The next step, or nothing when all that can run is in flight.
  std::optional<StepPlan> Schedule();
  // The oldest step in flight has finished. Rows as in its plan; none when `step` is not that step.
  std::vector<ScheduledRows> FinishStep(uint64_t step);

  // Sequences whose deadline is not after `now`, and the earliest deadline.
  std::vector<Sequence*> Expired(absl::Time now) const;
  absl::Time NextDeadline() const;

  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_steps_in_flight() const { return static_cast<int64_t>(in_flight_.size()); }
  uint64_t num_preemptions() const { return num_preemptions_; }
  const BlockManager& blocks() const { return blocks_; }

 private:
  struct InFlightStep {
    uint64_t step = 0;
    std::vector<ScheduledRows> rows;
  };
  struct Draft {  // the step under construction
    StepPlan plan;
    InFlightStep record;
    int64_t budget = 0;
  };

  void ScheduleDecodes(Draft& draft);
  bool SchedulePrompts(Draft& draft);  // false when the budget ended before the prompts did
  void Admit(Draft& draft);
  // Tokens the sequence would take next, at most budget; 0 when no legal cut fits.
  static int64_t NextCount(const Sequence& sequence, int64_t budget);
  void Plan(Draft& draft, Sequence& sequence, int64_t count);
  // Room for the sequence's known tokens, if need be by preempting younger sequences that are not
  // in the draft.
  bool EnsureBlocks(const Draft& draft, Sequence& sequence);
  bool AcquireCaches(Sequence& sequence);
  void ReleaseCaches(Sequence& sequence);
  void Preempt(Sequence& sequence);

  const int64_t max_running_;
  std::optional<ClusterCapacity> capacity_;  // empty while there is no cluster
  uint64_t epoch_ = 0;
  uint64_t next_step_ = 1;
  BlockManager blocks_{0, 0};
  absl::btree_map<uint64_t, Sequence*> waiting_;  // by id: in order of arrival
  absl::btree_map<uint64_t, Sequence*> running_;
  absl::btree_set<std::pair<absl::Time, uint64_t>> deadlines_;
  std::deque<InFlightStep> in_flight_;
  uint64_t num_preemptions_ = 0;
};

}  // namespace plumbline

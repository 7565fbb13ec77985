// Scheduler: which tokens of which sequences make the next step. Continuous batching: first
// sequences that decode, one token each, then prompts (and replays) within the token budget, then
// waiting sequences as long as caches are free. A prompt is cut on the absolute grid of kGridTokens
// only.
//
// Fairness: at every choice the flow that FairQueue puts first goes first; inside a flow it is the
// order of arrival. A prompt goes even before decodes of flows behind its own when they leave it less
// than a grid step, with half of the budget. When places or caches are taken, the first waiting
// sequence of all gets those of the youngest sequences of flows that must yield: one a step, and none
// that could be taken back, so that nothing thrashes.
//
// Prefix cache: a sequence that is admitted takes over the blocks of the longest prefix of its prompt
// that is cached. Blocks are found by later steps as soon as the step that fills them is planned. With
// recurrent layers a prefix needs the state behind it as well. States are saved at two places: behind
// the last grid position before the prompt's last token, so that the same prompt hits when it comes
// again (of a long prompt: the cut costs a step), and where a prompt leaves a cached one, so that what
// many prompts begin with is found from its second sight on. A prompt is cut there. Rows whose logits
// somebody waits for are computed.
//
// Pure: no tensors, no I/O, no clock but the one it is given. Not thread-safe.
//
// No starvation within a priority: nobody overtakes inside a flow, decodes of a flow take turns, flows
// take turns by what was computed for them, and a flow's oldest is only preempted (freed, recomputed
// from its tokens later) for older sequences of others. Steps run in order on every rank, so caches may
// be handed on while a step that uses them is still in flight.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/time/time.h"
#include "coordinator/engine/block_manager.h"
#include "coordinator/engine/fair_queue.h"
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

struct SchedulerOptions {
  int64_t max_running = 1;
  bool cache_prefixes = true;
  int64_t min_saved_prompt = 0;  // tokens; the state behind a shorter prompt is not worth the cut
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

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
  // From any state, also one that was never added; its caches are free at once.
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
  const FairQueue& queue() const { return queue_; }
  // Prompt tokens of admitted sequences, and those of them that the caches held.
  uint64_t num_prefix_queries() const { return num_prefix_queries_; }
  uint64_t num_prefix_hits() const { return num_prefix_hits_; }

 private:
  struct InFlightStep {
    uint64_t step = 0;
    std::vector<ScheduledRows> rows;
  };
  struct Draft {  // the step under construction
    StepPlan plan;
    InFlightStep record;
    int64_t budget = 0;
    bool admits = true;  // nobody who waits was turned away yet
    std::vector<std::pair<BlockHash, int32_t>> saved;  // states and their slots
  };
  struct Prefix {  // what the caches hold of a prompt
    std::vector<int32_t> blocks;
    int32_t slot = -1;   // with the state behind them
    int64_t branch = 0;  // Sequence::Cache::branch
    int64_t num_tokens() const { return static_cast<int64_t>(blocks.size()) * kGridTokens; }
  };

  enum class Room { kFree, kYielded };  // kYielded: also what other flows must yield

  // By flow, in the order in which they take turns.
  absl::btree_map<Flow*, std::deque<Sequence*>> ReadyDecodes() const;
  // Decodes that are dealt to one step.
  int64_t DecodeSeats() const;
  // The first prompt of all, when it would have to wait for others' decodes, places or caches.
  void ScheduleAhead(Draft& draft);
  void ScheduleDecodes(Draft& draft);
  void SchedulePrompts(Draft& draft);
  // The running or waiting sequence with a prompt or replay to compute whose turn it is; null: none.
  Sequence* NextPrompt(const Draft& draft);
  // A waiting sequence runs, with at most `budget` tokens in this step.
  bool Admit(Draft& draft, Sequence& sequence, int64_t budget, Room room);
  // Tokens the sequence would take next, at most budget; 0 when no legal cut fits.
  int64_t NextCount(Sequence& sequence, int64_t budget);
  // The next position of its prompt whose state is to be saved; 0 when there is none.
  int64_t NextSave(Sequence& sequence);
  Prefix FindPrefix(Sequence& sequence);
  // What the draft computes can be found from the next step on.
  void KeepPrefixes(Draft& draft);
  void Plan(Draft& draft, Sequence& sequence, int64_t count);
  // Room for the sequence's known tokens, if need be by preempting others that are not in the draft.
  bool EnsureBlocks(const Draft& draft, Sequence& sequence);
  // Whom a running sequence may preempt: of flows that must yield, else of its own flow's younger ones,
  // else a younger one whose flow could not demand the place back. The youngest of each; null: nobody.
  Sequence* VictimOf(const Draft& draft, const Sequence& sequence) const;
  bool AcquireCaches(const Draft& draft, Sequence& sequence, const Prefix& prefix, Room room);
  // Whether one more sequence, `num_blocks` more blocks, can run when those in `preempted` no longer do.
  bool HasRoom(int64_t num_blocks, const std::vector<Sequence*>& preempted) const;
  // Preempts those that must yield to a waiting sequence; nobody when that would not make room.
  bool TakeRoom(const Draft& draft, const Sequence& sequence, int64_t num_blocks);
  void ReleaseCaches(Sequence& sequence);
  void Preempt(Sequence& sequence);

  const SchedulerOptions options_;
  std::optional<ClusterCapacity> capacity_;  // empty while there is no cluster
  uint64_t epoch_ = 0;
  uint64_t next_step_ = 1;
  BlockManager blocks_{0, 0};
  FairQueue queue_;                               // of all sequences
  absl::btree_map<uint64_t, Sequence*> waiting_;  // by id: in order of arrival
  absl::btree_map<uint64_t, Sequence*> running_;
  absl::btree_set<std::pair<absl::Time, uint64_t>> deadlines_;
  std::deque<InFlightStep> in_flight_;
  uint64_t num_preemptions_ = 0;
  uint64_t num_prefix_queries_ = 0;
  uint64_t num_prefix_hits_ = 0;
};

}  // namespace plumbline

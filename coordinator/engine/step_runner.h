// StepRunner: what runs the engine's steps: a cluster of worker processes, or ranks inside this process.
#pragma once

#include <cstdint>
#include <functional>
#include <variant>

#include "absl/status/status.h"
#include "parallel/step_plan.h"

namespace plumbline {

// What the ranks laid out at start. The same for every epoch of one run.
struct ClusterCapacity {
  int64_t num_blocks = 0;       // KV blocks of kBlockTokens tokens
  int64_t num_state_slots = 0;  // of running sequences and of saved states; 0 when no layer is recurrent
  int64_t max_step_tokens = 0;
  int pipeline_stages = 1;      // steps that may be in flight
};

struct RunnerReady {            // all ranks hold their weights; caches are empty
  uint64_t epoch = 0;
  ClusterCapacity capacity;
};
struct RunnerLost {             // steps of this epoch will not finish; a RunnerReady of a later epoch may follow
  uint64_t epoch = 0;
  absl::Status reason;
  bool fatal = false;           // none will follow
};
using RunnerEvent = std::variant<RunnerReady, StepResult, RunnerLost>;

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Begins; events are delivered from threads of the runner, results of one epoch in step order. The listener must not
  // block, and is not called after Stop returns.
  virtual void Start(std::function<void(RunnerEvent)> listener) = 0;
  // Enqueues a step of the current epoch and returns at once; a step of an older epoch is dropped. Steps run in order.
  virtual void Submit(StepPlan plan) = 0;
  virtual void Stop() = 0;
};

}  // namespace plumbline

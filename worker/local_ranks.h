// LocalRanks: a whole mesh of ranks as threads of this process, with the same stages and communicators' contract as a
// cluster of processes. For one-shot commands, tests and `doctor`.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/mesh.h"
#include "parallel/model_config.h"
#include "parallel/planner.h"
#include "parallel/reduce.h"
#include "parallel/step_plan.h"
#include "worker/weight_source.h"

namespace plumbline {

class LocalRanks {
 public:
  struct Options {
    ModelConfig config;
    Mesh mesh;
    CacheLimits limits;
    DType compute_dtype = DType::kBf16;
    std::function<absl::StatusOr<Backend>()> make_backend;  // one per rank
    // kGloo, kShm: as between processes of this host.
    enum class Transport { kThreads, kGloo, kShm } transport = Transport::kThreads;
    // A source of this rank's own.
    std::function<absl::StatusOr<std::unique_ptr<WeightSource>>(const ShardPlan& plan)> open_weights;
    std::function<void(int rank, int64_t bytes_done)> on_progress;  // from the ranks' threads; may be empty
    std::string cache_dir;  // of packed weights; empty: none
    std::function<void(int rank, const std::string& line)> on_line;  // about that; as on_progress
    int64_t gather_bytes = kGatherBytes;  // of PartialExchange
  };
  // Returns when every rank holds its weights, or the first failure.
  static absl::StatusOr<std::unique_ptr<LocalRanks>> Start(Options options);
  virtual ~LocalRanks() = default;  // finishes the steps that were submitted

  using Done = std::function<void(absl::StatusOr<StepResult>)>;
  // Steps run in order, up to mesh.pp of them at once; done is called on a rank's thread. Any thread.
  virtual void Submit(StepPlan plan, Done done) = 0;
  // Submits and waits.
  absl::StatusOr<StepResult> Run(StepPlan plan);

  virtual int64_t num_blocks() const = 0;
  virtual int64_t num_state_slots() const = 0;
  virtual int64_t weight_bytes(int rank) const = 0;
};

}  // namespace plumbline

// Stage: the layers [first, last) of one rank, plus the embedding on the first stage and final norm and head on the last.
// Weights stay when the cluster changes; Connect gives it the communicators of a new epoch.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/planner.h"
#include "parallel/shard_plan.h"
#include "worker/model/batch.h"
#include "worker/model/decoder_layer.h"
#include "worker/model/head.h"
#include "worker/weight_cache.h"
#include "worker/weight_source.h"

namespace plumbline {

// This rank's two groups: the ranks of its stage, and the ranks with its tp index over all stages.
struct StageLinks {
  Communicator* tp = nullptr;
  Communicator* pp = nullptr;
};

class Stage {
 public:
  struct Options {
    ModelConfig config;
    Mesh mesh;
    int rank = 0;
    CacheLimits limits;
    DType compute_dtype = DType::kBf16;  // the checkpoint's, or f32
    std::function<void(int64_t bytes_done)> on_progress;  // checkpoint bytes held; may be empty
    std::string cache_dir;  // packed weights are kept there (worker/weight_cache.h); empty: nowhere
    std::function<void(const std::string& line)> on_line;  // about that, for the log; may be empty
    int64_t gather_bytes = kGatherBytes;  // of PartialExchange
  };
  // The source must outlive the stage when it is mapped. Errors name tensor, rank and what would be right.
  static absl::StatusOr<std::unique_ptr<Stage>> Load(Options options, Backend backend, WeightSource& source);

  // Forgets every sequence and talks to new neighbours. The communicators outlive the next Connect or the stage.
  void Connect(StageLinks links);

  // Runs one step. Results on the last stage's tp index 0; empty on every other rank. INVALID_ARGUMENT: the plan; otherwise
  // the transport's error. REQUIRES: Connect.
  absl::StatusOr<StepResult> Forward(const StepPlan& plan);

  int64_t weight_bytes() const { return weight_bytes_; }
  const BatchLimits& limits() const { return limits_; }

 private:
  explicit Stage(Options options, ShardPlan plan, Backend backend);
  void OpenCache(const WeightSource& source);
  absl::Status LoadWeights(WeightSource& source);
  absl::Status LayOut();
  absl::Status Begin(const Batch& batch);
  void FillRopeTable(const BatchRows& rows);

  Options options_;
  ShardPlan plan_;
  Backend backend_;
  int stage_index_;
  StageRange layer_range_;
  BatchLimits limits_;
  int64_t weight_bytes_ = 0;

  std::unique_ptr<WeightCache> cached_weights_;  // what it maps is used below
  WeightLoader::Table embedding_;
  std::vector<DecoderLayer> layers_;
  std::unique_ptr<Head> head_;
  Buffer inv_freq_;
  SequenceCache cache_;
  std::unique_ptr<BatchBuilder> batches_;
  ResidualStream residual_;
  Scratch scratch_;
  StageLinks links_;
};

// Bytes of everything but weights and caches that a rank lays out for steps of limits.max_step_tokens rows.
int64_t StageActivationBytes(const ModelConfig& config, const ShardPlan& plan, int stage,
                             const CacheLimits& limits, DType act);

}  // namespace plumbline

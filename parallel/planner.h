// Planner: does it fit, on which shape. Pure arithmetic over config, mesh and limits; `plan` prints it, serve uses it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/shard_plan.h"

namespace plumbline {

// What a rank's caches and buffers must hold.
struct CacheLimits {
  int64_t max_tokens = 0;       // KV tokens of all sequences together, rounded up to blocks
  int64_t max_sequences = 0;    // under way at once; each has a recurrent-state slot
  int64_t max_step_tokens = 0;  // rows of one step
  int64_t max_cached_states = 0;  // state slots beyond those, for the prefix cache
  int64_t num_state_slots() const { return max_sequences + max_cached_states; }
};

struct RankBytes {
  int rank = 0;
  int stage = 0;
  int tp_index = 0;
  int64_t parameters = 0;         // elements held by this rank
  int64_t checkpoint_bytes = 0;   // of the checkpoint's bytes, those this rank reads
  int64_t weight_bytes = 0;       // as held: f32 norms, a tied embedding as table and as head; without packing's padding
  int64_t kv_bytes = 0;
  int64_t state_bytes = 0;        // recurrent and conv state
  int64_t activation_bytes = 0;
  int64_t total() const { return weight_bytes + kv_bytes + state_bytes + activation_bytes; }
};

// Exact bytes per rank. compute_dtype: the activation dtype of the run (config.dtype, or f32).
std::vector<RankBytes> PlanMemory(const ModelConfig& config, const ShardPlan& plan, const CacheLimits& limits,
                                  DType compute_dtype);

int64_t KvBytesPerToken(const ModelConfig& config, DType cache_dtype);  // all layers, before sharding

// RESOURCE_EXHAUSTED when a rank needs more than available_bytes; says which rank and by how much.
absl::Status CheckFits(const std::vector<RankBytes>& ranks, int64_t available_bytes_per_rank);

}  // namespace plumbline

// SequenceCache: what a stage remembers of sequences between steps: paged keys and values of its attention layers, and
// recurrent and convolution states of its gated-delta-net layers. The coordinator decides who owns which block and slot.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "parallel/planner.h"
#include "parallel/shard_plan.h"

namespace plumbline {

struct KvCache {
  Buffer keys;    // [num_blocks, Nkv, B, H] act
  Buffer values;  // [num_blocks, Nkv, B, H] act
};
struct StateCache {
  Buffer recurrent;  // [num_slots, Hv, P, Q] f32
  Buffer conv;       // [num_slots, C, W - 1] act
};

class SequenceCache {
 public:
  // RESOURCE_EXHAUSTED says how much was wanted.
  static absl::StatusOr<SequenceCache> Make(Device& device, const ModelConfig& config, const ShardPlan& plan,
                                            int stage, const CacheLimits& limits, DType act);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_slots() const { return num_slots_; }  // 0 when no layer of the model is recurrent
  const KvCache& KvOf(int64_t layer) const { return kv_[layer - first_layer_]; }
  const StateCache& StateOf(int64_t layer) const { return state_[layer - first_layer_]; }
  // The recurrent and convolution states of every layer, enqueued on the device. REQUIRES: both in [0, num_slots()).
  void CopyState(Device& device, int32_t from, int32_t to);

 private:
  int64_t first_layer_ = 0;
  int64_t num_blocks_ = 0;
  int64_t num_slots_ = 0;
  std::vector<KvCache> kv_;        // by layer of the stage; empty for the other kind
  std::vector<StateCache> state_;
};

}  // namespace plumbline

#include "worker/model/sequence_cache.h"

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/status.h"

namespace plumbline {
namespace {

absl::StatusOr<Buffer> AllocateCache(Device& device, const char* what, int64_t num_bytes) {
  Buffer buffer = device.Allocate(num_bytes);
  if (buffer.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for the ", what, " of one layer: ", num_bytes, " bytes on ", device.Name()));
  }
  return buffer;
}

}  // namespace

absl::StatusOr<SequenceCache> SequenceCache::Make(Device& device, const ModelConfig& config,
                                                  const ShardPlan& plan, int stage,
                                                  const CacheLimits& limits, DType act) {
  SequenceCache cache;
  const StageRange range = plan.LayersOf(stage);
  const int64_t act_bytes = static_cast<int64_t>(SizeOf(act));
  cache.first_layer_ = range.first;
  cache.num_blocks_ = (limits.max_tokens + kBlockTokens - 1) / kBlockTokens;
  cache.num_slots_ = config.num_layers_of(MixerKind::kGatedDeltaNet) > 0 ? limits.num_state_slots() : 0;
  const int64_t kv_heads = plan.LocalKvHeads(config.attention.num_kv_heads);
  const int64_t kv_bytes =
      cache.num_blocks_ * kv_heads * kBlockTokens * config.attention.head_dim * act_bytes;
  const GatedDeltaNetConfig& gdn = config.delta_net;
  const int64_t tp = plan.mesh().tp;
  for (int64_t layer = range.first; layer < range.last; ++layer) {
    KvCache& kv = cache.kv_.emplace_back();
    StateCache& state = cache.state_.emplace_back();
    if (config.layers[layer].mixer == MixerKind::kAttention) {
      PL_ASSIGN_OR_RETURN(kv.keys, AllocateCache(device, "key cache", kv_bytes));
      PL_ASSIGN_OR_RETURN(kv.values, AllocateCache(device, "value cache", kv_bytes));
    } else {
      PL_ASSIGN_OR_RETURN(state.recurrent,
                          AllocateCache(device, "recurrent state",
                                        cache.num_slots_ * gdn.num_value_heads / tp * gdn.key_dim *
                                            gdn.value_dim * 4));
      PL_ASSIGN_OR_RETURN(state.conv, AllocateCache(device, "convolution state",
                                                    cache.num_slots_ * gdn.conv_channels() / tp *
                                                        (gdn.conv_width - 1) * act_bytes));
    }
  }
  return cache;
}

void SequenceCache::CopyState(Device& device, int32_t from, int32_t to) {
  for (const StateCache& state : state_) {
    for (const Buffer* buffer : {&state.recurrent, &state.conv}) {
      if (buffer->num_bytes() == 0) continue;
      const Tensor slots =
          buffer->View(DType::kU8, {num_slots_, static_cast<int64_t>(buffer->num_bytes()) / num_slots_});
      device.Copy(slots.Rows(to, 1), slots.Rows(from, 1));
    }
  }
}

}  // namespace plumbline

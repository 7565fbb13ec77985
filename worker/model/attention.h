// Grouped-query attention of one layer and rank: q/k norm, rotary embedding, paged cache, output gate (models of
// DESIGN.md, "Models"). Tensor parallel by heads.
#pragma once

#include "absl/status/statusor.h"
#include "parallel/model_config.h"
#include "worker/model/batch.h"
#include "worker/model/context.h"
#include "worker/model/sequence_cache.h"
#include "worker/model/weight_loader.h"

namespace plumbline {

class Attention {
 public:
  static absl::StatusOr<Attention> Load(const ModelConfig& config, const ShardPlan& plan,
                                        const std::string& prefix, WeightLoader& loader);

  // out [T, D] f32 = this rank's partial sum of o_proj.
  void Forward(const Context& context, const Batch& batch, const KvCache& cache, int64_t num_blocks,
               Activations& activations, Tensor out) const;

  static int64_t ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows, DType act);

 private:
  int64_t num_heads_ = 0;     // of this rank
  int64_t num_kv_heads_ = 0;  // of this rank
  int64_t head_dim_ = 0;
  bool gated_ = false;
  float norm_offset_ = 0;
  float eps_ = 0;
  PackedLinear qkv_;
  Buffer qkv_bias_;  // f32, empty without
  Buffer q_norm_, k_norm_;
  PackedLinear out_;
};

}  // namespace plumbline

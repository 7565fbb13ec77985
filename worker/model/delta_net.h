// Gated delta net of one layer and rank (arXiv:2412.06464; Qwen3.5/3.6's linear attention). Tensor parallel by heads: the
// recurrence needs no communication.
#pragma once

#include "absl/status/statusor.h"
#include "parallel/model_config.h"
#include "worker/model/batch.h"
#include "worker/model/context.h"
#include "worker/model/sequence_cache.h"
#include "worker/model/weight_loader.h"

namespace plumbline {

class DeltaNet {
 public:
  static absl::StatusOr<DeltaNet> Load(const ModelConfig& config, const ShardPlan& plan,
                                       const std::string& prefix, WeightLoader& loader);

  // out [T, D] f32 = this rank's partial sum of out_proj.
  void Forward(const Context& context, const Batch& batch, const StateCache& cache, int64_t num_slots,
               Activations& activations, Tensor out) const;

  static int64_t ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows, DType act);

 private:
  GatedDeltaNetConfig local_;  // head counts of this rank
  float eps_ = 0;
  PackedLinear projection_;    // q | k | v | z | b | a
  Buffer conv_;                // [C, W] f32
  Buffer a_log_, dt_bias_;     // [Hv] f32
  Buffer norm_;                // [Q] f32
  PackedLinear out_;
};

}  // namespace plumbline

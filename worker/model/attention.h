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
  // Which rows of a step have queries. In a model's last layer those whose logits are wanted; every row has a key and
  // a value.
  enum class QueryRows { kAll, kWanted };
  static absl::StatusOr<Attention> Load(const ModelConfig& config, const ShardPlan& plan, const std::string& prefix,
                                        QueryRows query_rows, WeightLoader& loader);

  // Stores the keys and values of all rows, from activations.normed [T, D]. REQUIRES: kWanted; before Forward.
  void StoreKeysAndValues(const Context& context, const Batch& batch, const KvCache& cache, int64_t num_blocks,
                          Activations& activations) const;

  // out = this rank's partial sum of o_proj: [T, D] f32 with kAll, which also stores keys and values; with kWanted
  // [R, D], from activations.normed [R, D] of the wanted rows.
  void Forward(const Context& context, const Batch& batch, const KvCache& cache, int64_t num_blocks,
               Activations& activations, Tensor out) const;

  static int64_t ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows, DType act);

 private:
  // q (and gate) heads above k and v heads; either may be missing.
  struct Projection {
    int64_t num_heads = 0;     // of this rank
    int64_t num_kv_heads = 0;  // of this rank
    PackedLinear weight;
    Buffer bias;  // f32, empty without
  };
  struct Projected {
    Tensor qkv;  // [T, ...] f32: of it, gates
    Tensor q;    // [T, Nq, H] act
  };
  Projected Project(const Context& context, const Projection& projection, const BatchRows& rows, Tensor kv_slots,
                    const KvCache& cache, int64_t num_blocks, Activations& activations) const;

  QueryRows query_rows_ = QueryRows::kAll;
  int64_t num_kv_heads_ = 0;  // of this rank
  int64_t head_dim_ = 0;
  bool gated_ = false;
  float norm_offset_ = 0;
  float eps_ = 0;
  Projection queries_;          // and keys and values with kAll
  Projection keys_and_values_;  // with kWanted
  Buffer q_norm_, k_norm_;
  PackedLinear out_;
};

}  // namespace plumbline

#include "worker/model/attention.h"

#include <cmath>

#include "proto/status.h"

namespace plumbline {
namespace {

ConstTensor VectorView(const Buffer& buffer) {
  if (buffer.data() == nullptr) return {};
  return buffer.View(DType::kF32, {static_cast<int64_t>(buffer.num_bytes() / 4)});
}

int64_t QkvWidth(int64_t heads, int64_t kv_heads, const AttentionConfig& config) {
  return (heads * (config.output_gate ? 2 : 1) + 2 * kv_heads) * config.head_dim;
}

}  // namespace

absl::StatusOr<Attention> Attention::Load(const ModelConfig& config, const ShardPlan& plan,
                                          const std::string& prefix, WeightLoader& loader) {
  Attention layer;
  layer.num_heads_ = plan.LocalHeads(config.attention.num_heads);
  layer.num_kv_heads_ = plan.LocalKvHeads(config.attention.num_kv_heads);
  layer.head_dim_ = config.attention.head_dim;
  layer.gated_ = config.attention.output_gate;
  layer.norm_offset_ = config.norm_offset;
  layer.eps_ = config.norm_eps;
  const std::string self = prefix + "self_attn.";
  PL_ASSIGN_OR_RETURN(layer.qkv_, loader.Linear({self + "q_proj.weight", self + "k_proj.weight",
                                                 self + "v_proj.weight"}));
  if (config.attention.qkv_bias) {
    PL_ASSIGN_OR_RETURN(layer.qkv_bias_, loader.Vector({self + "q_proj.bias", self + "k_proj.bias",
                                                        self + "v_proj.bias"}));
  }
  if (config.attention.qk_norm) {
    PL_ASSIGN_OR_RETURN(layer.q_norm_, loader.Vector({self + "q_norm.weight"}));
    PL_ASSIGN_OR_RETURN(layer.k_norm_, loader.Vector({self + "k_norm.weight"}));
  }
  PL_ASSIGN_OR_RETURN(layer.out_, loader.Linear({self + "o_proj.weight"}));
  return layer;
}

void Attention::Forward(const Context& context, const Batch& batch, const KvCache& cache,
                        int64_t num_blocks, Activations& activations, Tensor out) const {
  const int64_t rows = batch.num_rows;
  const Shape cache_shape = {num_blocks, num_kv_heads_, kBlockTokens, head_dim_};
  Tensor keys = cache.keys.View(context.act, cache_shape);
  Tensor values = cache.values.View(context.act, cache_shape);
  Scratch& scratch = *activations.scratch;
  Tensor qkv = scratch.Take(DType::kF32, {rows, qkv_.shape.n});
  Tensor q = scratch.Take(context.act, {rows, num_heads_, head_dim_});
  Tensor attended = scratch.Take(context.act, {rows, num_heads_ * head_dim_});
  context.ops->QkvLinear({.linear = {.out = qkv,
                                     .x = activations.normed,
                                     .weight = qkv_.packed(),
                                     .shape = qkv_.shape,
                                     .bias = VectorView(qkv_bias_)},
                          .rope = {.q = q,
                                   .k_cache = keys,
                                   .v_cache = values,
                                   .qkv = qkv,
                                   .q_norm = VectorView(q_norm_),
                                   .k_norm = VectorView(k_norm_),
                                   .cos = batch.cos,
                                   .sin = batch.sin,
                                   .slots = batch.kv_slots,
                                   .norm_offset = norm_offset_,
                                   .eps = eps_,
                                   .gated = gated_}});
  context.ops->Attention({.out = attended,
                          .q = q,
                          .k_cache = keys,
                          .v_cache = values,
                          .qkv = qkv,
                          .sequences = batch.sequences,
                          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim_)),
                          .gated = gated_});
  context.ops->Linear({.out = out, .x = attended, .weight = out_.packed(), .shape = out_.shape});
}

int64_t Attention::ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows,
                                DType act) {
  const int64_t heads = plan.LocalHeads(config.attention.num_heads);
  const int64_t kv_heads = plan.LocalKvHeads(config.attention.num_kv_heads);
  return Scratch::BytesOf(DType::kF32, rows * QkvWidth(heads, kv_heads, config.attention)) +
         2 * Scratch::BytesOf(act, rows * heads * config.attention.head_dim);
}

}  // namespace plumbline

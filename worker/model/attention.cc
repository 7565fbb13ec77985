#include "worker/model/attention.h"

#include <cmath>

#include "absl/strings/str_cat.h"
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

absl::StatusOr<Attention> Attention::Load(const ModelConfig& config, const ShardPlan& plan, const std::string& prefix,
                                          QueryRows query_rows, WeightLoader& loader) {
  Attention layer;
  layer.query_rows_ = query_rows;
  layer.num_kv_heads_ = plan.LocalKvHeads(config.attention.num_kv_heads);
  layer.head_dim_ = config.attention.head_dim;
  layer.gated_ = config.attention.output_gate;
  layer.norm_offset_ = config.norm_offset;
  layer.eps_ = config.norm_eps;
  const std::string self = prefix + "self_attn.";
  const auto load = [&](Projection& projection, const std::vector<std::string>& names) -> absl::Status {
    std::vector<std::string> weights, biases;
    for (const std::string& name : names) {
      weights.push_back(absl::StrCat(self, name, ".weight"));
      biases.push_back(absl::StrCat(self, name, ".bias"));
    }
    PL_ASSIGN_OR_RETURN(projection.weight, loader.Linear(weights));
    if (config.attention.qkv_bias) {
      PL_ASSIGN_OR_RETURN(projection.bias, loader.Vector(biases));
    }
    return absl::OkStatus();
  };
  layer.queries_.num_heads = plan.LocalHeads(config.attention.num_heads);
  if (query_rows == QueryRows::kAll) {
    layer.queries_.num_kv_heads = layer.num_kv_heads_;
    PL_RETURN_IF_ERROR(load(layer.queries_, {"q_proj", "k_proj", "v_proj"}));
  } else {
    layer.keys_and_values_.num_kv_heads = layer.num_kv_heads_;
    PL_RETURN_IF_ERROR(load(layer.queries_, {"q_proj"}));
    PL_RETURN_IF_ERROR(load(layer.keys_and_values_, {"k_proj", "v_proj"}));
  }
  if (config.attention.qk_norm) {
    PL_ASSIGN_OR_RETURN(layer.q_norm_, loader.Vector({self + "q_norm.weight"}));
    PL_ASSIGN_OR_RETURN(layer.k_norm_, loader.Vector({self + "k_norm.weight"}));
  }
  PL_ASSIGN_OR_RETURN(layer.out_, loader.Linear({self + "o_proj.weight"}));
  return layer;
}

Attention::Projected Attention::Project(const Context& context, const Projection& projection, const BatchRows& rows,
                                        Tensor kv_slots, const KvCache& cache, int64_t num_blocks,
                                        Activations& activations) const {
  Scratch& scratch = *activations.scratch;
  const LinearShape& shape = projection.weight.shape;
  const Shape cache_shape = {num_blocks, projection.num_kv_heads, kBlockTokens, head_dim_};
  const Projected projected = {.qkv = scratch.Take(DType::kF32, {rows.count, shape.n}),
                               .q = scratch.Take(context.act, {rows.count, projection.num_heads, head_dim_})};
  context.ops->QkvLinear({.linear = {.out = projected.qkv,
                                     .x = activations.normed,
                                     .weight = projection.weight.packed(),
                                     .shape = shape,
                                     .bias = VectorView(projection.bias)},
                          .rope = {.q = projected.q,
                                   .k_cache = cache.keys.View(context.act, cache_shape),
                                   .v_cache = cache.values.View(context.act, cache_shape),
                                   .qkv = projected.qkv,
                                   .q_norm = VectorView(q_norm_),
                                   .k_norm = VectorView(k_norm_),
                                   .cos = rows.cos,
                                   .sin = rows.sin,
                                   .slots = kv_slots,
                                   .norm_offset = norm_offset_,
                                   .eps = eps_,
                                   .gated = gated_}});
  return projected;
}

void Attention::StoreKeysAndValues(const Context& context, const Batch& batch, const KvCache& cache,
                                   int64_t num_blocks, Activations& activations) const {
  Project(context, keys_and_values_, batch.all, batch.kv_slots, cache, num_blocks, activations);
}

void Attention::Forward(const Context& context, const Batch& batch, const KvCache& cache,
                        int64_t num_blocks, Activations& activations, Tensor out) const {
  const bool all = query_rows_ == QueryRows::kAll;
  const BatchRows& rows = all ? batch.all : batch.wanted;
  const auto [qkv, q] =
      Project(context, queries_, rows, all ? batch.kv_slots : Tensor(), cache, num_blocks, activations);
  Tensor attended = activations.scratch->TakeSpread(context.act, rows.count, queries_.num_heads * head_dim_);
  const Shape cache_shape = {num_blocks, num_kv_heads_, kBlockTokens, head_dim_};
  context.ops->Attention({.out = attended,
                          .q = q,
                          .k_cache = cache.keys.View(context.act, cache_shape),
                          .v_cache = cache.values.View(context.act, cache_shape),
                          .qkv = qkv,
                          .sequences = rows.sequences,
                          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim_)),
                          .gated = gated_});
  context.ops->Linear({.out = out, .x = attended, .weight = out_.packed(), .shape = out_.shape});
}

int64_t Attention::ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows,
                                DType act) {
  const int64_t heads = plan.LocalHeads(config.attention.num_heads);
  const int64_t kv_heads = plan.LocalKvHeads(config.attention.num_kv_heads);
  return Scratch::BytesOf(DType::kF32, rows * QkvWidth(heads, kv_heads, config.attention)) +
         Scratch::BytesOf(act, rows * heads * config.attention.head_dim) +
         Scratch::SpreadBytesOf(act, rows, heads * config.attention.head_dim);
}

}  // namespace plumbline

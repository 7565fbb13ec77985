#include "worker/model/decoder_layer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

// Drops the rows of h that are not wanted, unless they are dropped already.
void KeepWantedRows(const Context& context, const Batch& batch, Activations& activations) {
  const int64_t num_wanted = batch.wanted.count;
  if (num_wanted == activations.h.dim(0)) return;
  if (!activations.partials.empty()) {
    context.ops->ReduceAdd({.h = activations.h, .partials = activations.partials});
    activations.partials = {};
  }
  const Tensor kept = activations.h.Rows(0, num_wanted);
  if (num_wanted > 0) {
    activations.scratch->Reset();
    Tensor gathered = activations.scratch->Take(DType::kF32, kept.shape());
    context.ops->Embed({.out = gathered, .tokens = batch.wanted_rows, .table = activations.h});
    context.device->Copy(kept, gathered);
  }
  activations.h = kept;
  activations.normed = activations.normed.Rows(0, num_wanted);
}

}  // namespace

absl::StatusOr<DecoderLayer> DecoderLayer::Load(const ModelConfig& config, const ShardPlan& plan,
                                                int64_t index, WeightLoader& loader) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  DecoderLayer layer;
  layer.index_ = index;
  layer.is_last_ = index + 1 == config.num_layers();
  layer.norm_offset_ = config.norm_offset;
  layer.eps_ = config.norm_eps;
  PL_ASSIGN_OR_RETURN(layer.input_norm_, loader.Vector({prefix + "input_layernorm.weight"}));
  PL_ASSIGN_OR_RETURN(layer.post_mixer_norm_,
                      loader.Vector({prefix + "post_attention_layernorm.weight"}));
  if (config.layers[index].mixer == MixerKind::kAttention) {
    const auto query_rows = layer.is_last_ ? Attention::QueryRows::kWanted : Attention::QueryRows::kAll;
    PL_ASSIGN_OR_RETURN(layer.mixer_, Attention::Load(config, plan, prefix, query_rows, loader));
  } else {
    PL_ASSIGN_OR_RETURN(layer.mixer_, DeltaNet::Load(config, plan, prefix, loader));
  }
  if (config.layers[index].moe) {
    PL_ASSIGN_OR_RETURN(layer.mlp_, LoadMoeMlp(config, prefix, loader));
  } else {
    PL_ASSIGN_OR_RETURN(layer.mlp_, LoadDenseMlp(prefix, loader));
  }
  return layer;
}

void DecoderLayer::AddAndNorm(const Context& context, const Buffer& weight,
                              Activations& activations) const {
  context.ops->ReduceAddRmsNorm({.out = activations.normed,
                                 .h = activations.h,
                                 .partials = activations.partials,
                                 .weight = weight.View(DType::kF32, {activations.h.dim(1)}),
                                 .weight_offset = norm_offset_,
                                 .eps = eps_});
  activations.partials = {};
}

absl::Status DecoderLayer::Forward(const Context& context, const Batch& batch, const SequenceCache& cache,
                                   Activations& activations) const {
  const int64_t hidden = activations.h.dim(1);
  const auto* attention = std::get_if<Attention>(&mixer_);
  activations.scratch->Reset();
  AddAndNorm(context, input_norm_, activations);
  if (is_last_ && attention != nullptr) {
    attention->StoreKeysAndValues(context, batch, cache.KvOf(index_), cache.num_blocks(), activations);
    if (batch.wanted.count < batch.all.count) {
      KeepWantedRows(context, batch, activations);
      if (batch.wanted.count == 0) return absl::OkStatus();
      AddAndNorm(context, input_norm_, activations);  // nothing is added twice: no partials are left
    }
    activations.scratch->Reset();
  }
  int64_t rows = activations.h.dim(0);
  Tensor mixed = context.exchange->Local(rows, hidden);
  if (attention != nullptr) {
    attention->Forward(context, batch, cache.KvOf(index_), cache.num_blocks(), activations, mixed);
  } else {
    std::get<DeltaNet>(mixer_).Forward(context, batch, cache.StateOf(index_), cache.num_slots(),
                                       activations, mixed);
  }
  PL_ASSIGN_OR_RETURN(activations.partials, context.exchange->Exchange(rows, hidden));

  if (is_last_) KeepWantedRows(context, batch, activations);
  rows = activations.h.dim(0);
  if (rows == 0) return absl::OkStatus();
  activations.scratch->Reset();
  AddAndNorm(context, post_mixer_norm_, activations);
  mlp_->Forward(context, activations, context.exchange->Local(rows, hidden));
  PL_ASSIGN_OR_RETURN(activations.partials, context.exchange->Exchange(rows, hidden));
  return absl::OkStatus();
}

int64_t DecoderLayer::ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows,
                                   DType act) {
  int64_t bytes = Scratch::BytesOf(DType::kF32, rows * config.hidden);  // KeepWantedRows
  for (const LayerConfig& layer : config.layers) {
    bytes = std::max(bytes, layer.mixer == MixerKind::kAttention
                                ? Attention::ScratchBytes(config, plan, rows, act)
                                : DeltaNet::ScratchBytes(config, plan, rows, act));
    bytes = std::max(bytes, layer.moe ? MoeMlpScratchBytes(config.moe, rows)
                                      : DenseMlpScratchBytes(layer.ffn / plan.mesh().tp, rows, act));
  }
  return bytes;
}

}  // namespace plumbline
